"""Verdicts from records that are written by hand: what outranks what, and in which words."""

from typing import Any

import pytest

from robustclip.attacks.events import Cut
from robustclip.attacks.pgd import PGD
from robustclip.probing.verdict import reach_verdict
from robustclip.reports.report import AttackRecord, Decision, InputPart, Rate, Verdict
from robustclip.sanity.symptoms import Diagnostic
from robustclip.threat import L2, BallSpec, Linf

LINF, HALF = Linf(radius=4 / 255), L2(radius=0.5)
CLEAN = Decision(label="cat", probability=0.9, margin=-2.0, correct=True)
QUESTION = InputPart(
    sha256="", resolution=(32, 32), true_label="cat", target_label=None, goal="change_decision", clean=CLEAN
)
FLAG = Diagnostic(
    id="M1", name="zero gradient", fired=True, severity="hard", number=1.0, threshold=0.01, sentence=""
)


def record(ball: BallSpec = LINF, **changes: Any) -> AttackRecord:
    facts = {
        "kind": "pgd",
        "params": PGD(ball=ball).model_dump(mode="json", exclude={"kind"}),
        "score": "margin",
        "knowledge": "adaptive",
        "gradient": "exact",
        "eot": 1,
        "success": False,
        "success_8bit": False,
        "rate": None,
        "label": "dog",
        "probability": 0.5,
        "margin": 0.1,
        "linf": 4 / 255,
        "linf_levels": 4.0,
        "l2": 0.498,
        "first_success_step": None,
        "trace": None,
        "heat": None,
        "adversarial_png": None,
        "witness_sha256": None,
        "forward": 1,
        "backward": 0,
    }
    return AttackRecord.model_validate(facts | changes)


def verdict(
    *records: AttackRecord,
    flags: tuple[Diagnostic, ...] = (),
    question: InputPart = QUESTION,
    balls: tuple[BallSpec, ...] = (LINF,),
    cut: Cut | None = None,
) -> Verdict:
    return reach_verdict(question, records, flags, balls=balls, charged=123, cut=cut)


def test_a_witness_outranks_every_flag() -> None:
    found = verdict(record(success_8bit=True), flags=(FLAG,))
    assert (found.value, found.bits, found.reason) == ("broken", "8", "witness")


def test_an_8_bit_witness_outranks_a_float_one_and_the_smallest_is_shown() -> None:
    found = verdict(
        record(success=True, linf=0.001, label="car"),
        record(success_8bit=True),
        record(success_8bit=True, linf=2 / 255, linf_levels=2, label="ship"),
    )
    assert found.bits == "8"
    assert "at most 2/255 a value turns 'cat' into 'ship'" in found.sentence
    assert verdict(record(success=True)).bits == "float"


def test_a_witness_is_told_in_the_words_of_its_norm() -> None:
    assert verdict(record(success_8bit=True)).sentence.startswith(
        "A change of at most 4/255 a value turns 'cat' into 'dog' (adaptive pgd, verified on the PNG"
    )
    said = verdict(record(HALF, success_8bit=True), balls=(HALF,)).sentence
    assert said.startswith("A change of length 0.498 (L2, at most 0.5) turns 'cat' into 'dog'")
    assert "/255" not in said


@pytest.mark.parametrize(
    ("balls", "words"),
    [
        ((LINF,), "4/255 (Linf)"),
        ((HALF,), "0.5 (L2)"),
        ((L2(radius=4 / 3),), "1.33 (L2)"),
        ((LINF, HALF, Linf(radius=2 / 255), L2(radius=0.25)), "4/255 (Linf), 0.5 (L2)"),
    ],
)
def test_what_was_tried_in_vain_is_told_in_the_words_of_each_norm(
    balls: tuple[BallSpec, ...], words: str
) -> None:
    found = verdict(record(), balls=balls)
    assert (found.value, found.reason) == ("not-broken-within-budget", "budget-spent")
    assert found.sentence == f"No attack tried up to {words} changed the decision (123 charged passes)."


def test_without_a_witness_a_hard_flag_is_named_and_a_soft_one_is_not_enough() -> None:
    found = verdict(record(), flags=(FLAG,))
    assert (found.value, found.reason) == ("inconclusive", "masking")
    assert "M1 zero gradient" in found.sentence
    assert verdict(record(), flags=(FLAG.model_copy(update={"severity": "soft"}),)).reason == "budget-spent"
    assert verdict(record(), flags=(FLAG.model_copy(update={"fired": False}),)).reason == "budget-spent"


def test_a_transferred_attack_alone_and_a_coin_toss_are_inconclusive() -> None:
    assert verdict(record(knowledge="static")).reason == "static-only"
    assert verdict(record(rate=Rate(wrong=30, draws=64, low=0.35, high=0.59))).reason == "random"
    assert verdict(record(rate=Rate(wrong=3, draws=64, low=0.02, high=0.13))).reason == "budget-spent"


@pytest.mark.parametrize(
    ("cut", "words"),
    [("deadline", "its time was over"), ("cancelled", "it was stopped"), ("budget", "its passes were spent")],
)
def test_what_was_cut_short_is_inconclusive_and_says_why_unless_there_is_a_witness(
    cut: Cut, words: str
) -> None:
    for records in ((), (record(),)):
        found = verdict(*records, flags=(FLAG,), cut=cut)
        assert (found.value, found.reason) == ("inconclusive", cut)
        assert found.sentence == f"Nothing broke it up to 4/255 (Linf) before {words} (123 charged passes)."
    assert verdict(record(success_8bit=True), cut=cut).value == "broken"


def test_answers_alone_prove_nothing_beside_a_missing_gradient() -> None:
    assert verdict(record(knowledge="black_box")).reason == "black-box-only"
    assert verdict(record(knowledge="black_box"), record()).reason == "budget-spent"
    assert verdict(record(knowledge="oblivious"), record(knowledge="transfer")).reason == "static-only"


def test_a_clean_picture_that_is_wrong_needs_no_attack() -> None:
    wrong = CLEAN.model_copy(update={"label": "dog", "correct": False})
    found = verdict(record(), question=QUESTION.model_copy(update={"goal": "change_label", "clean": wrong}))
    assert (found.value, found.reason) == ("broken", "clean-wrong")
    assert "'dog' instead of 'cat'" in found.sentence


def test_a_clean_picture_that_shows_the_target_needs_no_attack_either() -> None:
    shown = CLEAN.model_copy(update={"label": "dog", "correct": False})
    asked = {"goal": "reach_target", "target_label": "dog", "clean": shown}
    found = verdict(record(success_8bit=True, linf=0.0), question=QUESTION.model_copy(update=asked))
    assert (found.value, found.reason) == ("broken", "clean-wrong")
    assert found.sentence == "The clean picture is already taken for 'dog', which is the target."
    other = QUESTION.model_copy(update=asked | {"target_label": "ship"})
    assert verdict(record(success_8bit=True, label="ship"), question=other).sentence.startswith(
        "A change of at most 4/255 a value turns 'dog' into 'ship'"
    )


def test_a_vote_that_abstains_is_not_yet_wrong() -> None:
    leaning = CLEAN.model_copy(update={"label": "dog", "correct": False, "abstained": True})
    for goal in ("change_label", "reach_target"):
        asked = {"goal": goal, "target_label": "dog" if goal == "reach_target" else None, "clean": leaning}
        question = QUESTION.model_copy(update=asked)
        assert verdict(record(), question=question).reason == "budget-spent"
        found = verdict(record(success_8bit=True), question=question)
        assert found.sentence.startswith("A change of at most 4/255 a value turns no answer into 'dog'")


def test_no_change_is_no_witness() -> None:
    found = verdict(
        record(
            success_8bit=True, linf=0.0, linf_levels=0.0, rate=Rate(wrong=60, draws=64, low=0.85, high=0.98)
        )
    )
    assert (found.value, found.reason) == ("broken", "clean-wrong")
    assert "draws of the defense already take" in found.sentence
