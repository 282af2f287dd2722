"""Probes of sigmoid decisions: what breaks them, what reports say, and that replay agrees."""

import base64
from pathlib import Path
from typing import Any

import pytest
from probed import stored
from probing import LABELS, SPARED, options, picture
from sigmoid import sigmoid_clip

from robustclip.deployed import DeployedClassifier, deploy
from robustclip.errors import InvalidInput
from robustclip.images import load_pixels
from robustclip.models.classifier import TorchImageEncoder, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.scoring import NONE, Scoring
from robustclip.probing.plan import charged_passes
from robustclip.probing.run import probe
from robustclip.reports.replay import Replay, replay
from robustclip.reports.report import ProbeReport
from robustclip.reports.witnesses import collect
from robustclip.types import Features, Logits, Pixels, Seeds


@pytest.fixture(scope="module")
def biased() -> Clip:
    """Of `picture(clip)` the logits are 3.8, 5.7, 2.8 and 4.3: all labels fit, `dog` best."""
    return sigmoid_clip(-6.0)


def subject(clip: Clip, *labels: str, defense: str = "none") -> DeployedClassifier:
    return deploy(clip, Prompts(), labels or LABELS, defense=defense, name="demo@000000000000")


def replayed(clip: Clip, report: ProbeReport, folder: Path, scoring: Scoring | None = None) -> Replay:
    stored(report, folder / "report.json")
    encoder = TorchImageEncoder(clip)

    def encode(pixels: Pixels, seeds: Seeds) -> Features:
        return encoder(pixels, None)

    def judge(features: Features, labels: tuple[str, ...], scoring: Scoring) -> Logits:
        return zero_shot(clip, Prompts(), labels, scoring=scoring).judge(features)

    witnesses = collect([folder]).witnesses
    return replay(witnesses, encode, judge, size=clip.image_size, scoring=scoring)


def test_a_witness_breaks_a_sigmoid_decision_and_replay_agrees(biased: Clip, tmp_path: Path) -> None:
    victim = subject(biased)
    report = probe(victim, picture(biased), options())
    assert (report.verdict.value, report.victim.scoring, report.victim.labels) == (
        "broken",
        "sigmoid",
        LABELS,
    )
    found = replayed(biased, report, tmp_path)
    assert not found.skipped
    for each, record in zip(found.judged, report.attacks, strict=True):
        assert each.scoring == "sigmoid"
        assert each.fooled
        assert (each.label, each.probability) == (record.label, pytest.approx(record.probability, abs=1e-5))


def test_a_picture_may_be_made_to_fit_no_label_and_to_fit_one(biased: Clip) -> None:
    victim, clean = subject(biased), picture(biased)
    away = probe(victim, clean, options(target_label=NONE))
    assert "a value turns 'dog' into 'none of these'" in away.verdict.sentence
    record = away.attacks[0]
    assert record.adversarial_png is not None
    witness = load_pixels(base64.b64decode(record.adversarial_png), biased.image_size)
    answer = victim(witness)
    assert answer.none_of_these
    assert max(score for _, score in answer.predictions) < 0.5
    assert record.probability == pytest.approx(1 - answer.predictions[0][1], abs=1e-5)
    back = probe(victim, witness, options(radius=16 / 255, true_label=NONE, target_label="cat"))
    assert back.input.clean.label == back.input.true_label == NONE
    assert back.attacks[0].label == "cat"


def test_one_label_is_probed_against_none_and_never_costs_more_than_announced(biased: Clip) -> None:
    victim = subject(biased, "dog")
    attack = {"kind": "ensemble", "ball": {"kind": "linf", "radius": "8/255"}, "preset": "quick"}
    asked = options(attacks=(attack,), minimal=True)
    report = probe(victim, picture(biased), asked)
    assert (report.input.clean.label, report.attacks[0].label) == ("dog", NONE)
    assert report.minimal_radius is not None
    assert report.minimal_radius.label == NONE
    assert report.charged <= charged_passes(victim, asked)
    spared = options(radius=SPARED, self_test=True, score="cross_entropy")
    standing = probe(victim, picture(biased), spared)
    assert standing.verdict.value in ("not-broken-within-budget", "inconclusive")
    assert standing.charged <= charged_passes(victim, spared)


@pytest.mark.parametrize("defense", ["jpeg:75,bit_depth:4", "resize_pad", "smoothing:0.1"])
def test_defended_sigmoid_decisions_are_judged_by_what_is_served(biased: Clip, defense: str) -> None:
    victim = subject(biased, defense=defense)
    asked = options(eot=2, fresh_draws=8, certify={"n": 50, "n0": 10, "sigma": 0.1})
    report = probe(victim, picture(biased), asked)
    assert report.certificate is not None
    assert {report.certificate.label, report.input.clean.label} <= {*LABELS, NONE}
    assert report.verdict.value in ("broken", "inconclusive", "not-broken-within-budget", "certified")
    for record in report.attacks:
        assert record.success_8bit == (record.label != report.input.clean.label) or record.rate is not None


def test_a_report_without_a_scoring_is_one_of_softmax(tiny: Clip, tmp_path: Path) -> None:
    report = probe(subject(tiny), picture(tiny), options())
    data: Any = report.model_dump(mode="json", by_alias=True)
    del data["victim"]["scoring"]
    assert ProbeReport.model_validate(data) == report
    assert replayed(tiny, report, tmp_path).judged[0].scoring == "softmax"


def test_what_a_decision_can_t_say_is_skipped_and_named(biased: Clip, tiny: Clip, tmp_path: Path) -> None:
    report = probe(subject(biased), picture(biased), options(target_label=NONE))
    for clip, scoring, reason in (
        (biased, "softmax", "never says 'none of these'"),
        (tiny, None, "no logit bias"),
    ):
        found = replayed(clip, report, tmp_path, scoring)
        assert not found.judged
        assert all(reason in each.reason for each in found.skipped)


def test_a_scoring_is_part_of_what_was_attacked(biased: Clip) -> None:
    ways: tuple[Scoring, ...] = ("softmax", "sigmoid")
    reports = [
        probe(deploy(biased, Prompts(), LABELS, scoring=scoring), picture(biased), options(radius=SPARED))
        for scoring in ways
    ]
    assert reports[0].victim.digest != reports[1].victim.digest
    with pytest.raises(InvalidInput, match="not among the labels"):
        probe(
            deploy(biased, Prompts(), LABELS, scoring="softmax"), picture(biased), options(target_label=NONE)
        )


def test_other_prompt_sets_lend_their_gradients_under_the_same_scoring_only(biased: Clip) -> None:
    victim, source = (
        subject(biased),
        deploy(biased, Prompts(templates=("a {}.",)), LABELS, name="a@000000000000"),
    )
    report = probe(victim, picture(biased), options(modes=("transfer",)), sources=[source])
    assert report.attacks[0].knowledge == "transfer"
    other = deploy(biased, Prompts(), LABELS, scoring="softmax")
    with pytest.raises(InvalidInput, match="between other labels"):
        probe(victim, picture(biased), options(modes=("transfer",)), sources=[other])
