"""What a probe tries beyond PGD: the ensemble, transfer, an attack without labels, the smallest radius; and
how it ends before its time.
"""

import base64
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

import pytest
import torch
from probing import SPARED, options, picture, served_label, victim
from torch import Tensor

from robustclip.attacks.events import Meter
from robustclip.attacks.fmn import FMN
from robustclip.attacks.noise import Noise
from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square
from robustclip.errors import DeadlineExceeded, InvalidInput
from robustclip.images import load_pixels
from robustclip.models.clip import Clip
from robustclip.probing.events import AttackProgress, BracketMoved, ProbeEvent, ProbeFinished, WitnessFound
from robustclip.probing.examination import queried_in
from robustclip.probing.options import ProbeOptions, strong_attack
from robustclip.probing.plan import charged_passes
from robustclip.probing.records import brought_nearer
from robustclip.probing.run import events, probe
from robustclip.reports.report import ProbeReport
from robustclip.scores.wrappers import guarded
from robustclip.threat import L2, BallSpec, Linf
from robustclip.types import DeviceAccess, Pixels, Score


def strong(radius: float = 8 / 255, **changes: object) -> ProbeOptions:
    return options(
        **{
            "attacks": (strong_attack(Linf(radius=radius), "quick"),),
            "include": (),
            "eot": 2,
            "fresh_draws": 8,
        }
        | changes
    )


def last(told: Iterator[ProbeEvent]) -> ProbeReport:
    finished = list(told)[-1]
    assert isinstance(finished, ProbeFinished)
    return finished.report


def test_an_ensemble_says_which_of_its_attacks_broke_the_decision(tiny: Clip) -> None:
    report = probe(victim(tiny), picture(tiny), strong(include=("adversarial",)))
    record = report.attacks[0]
    assert (report.verdict.value, report.verdict.bits) == ("broken", "8")
    assert (record.kind, record.score, record.knowledge) == ("ensemble", "cascade", "adaptive")
    assert [stage.broken for stage in record.stages] == [False] * (len(record.stages) - 1) + [True]
    assert record.params["widen"] == 8
    assert sum(stage.charged for stage in record.stages) <= record.forward + 2 * record.backward


@pytest.mark.parametrize("defense", ["none", "jpeg:75", "resize_pad"])
def test_an_unbroken_ensemble_tells_all_it_tried_at_no_more_than_its_price(tiny: Clip, defense: str) -> None:
    subject, asked = victim(tiny, defense), strong(SPARED)
    report = probe(subject, picture(tiny), asked)
    named = [stage.name for stage in report.attacks[-1].stages]
    assert named[-2:] == ["margin-pgd", "square"]
    assert ("transfer-undefended" in named, "transfer-bypassed" in named) == (
        defense != "none",
        defense == "jpeg:75",
    )
    assert report.charged <= charged_passes(subject, asked)
    if defense != "none":
        assert [(record.kind, record.knowledge) for record in report.attacks] == [
            ("pgd", "static"),
            ("ensemble", "adaptive"),
        ]


def test_square_at_the_end_of_an_ensemble_is_what_the_check_for_values_asks(tiny: Clip) -> None:
    report = probe(victim(tiny), picture(tiny), strong(SPARED))
    assert queried_in(report.attacks, Linf(radius=SPARED)) is False
    assert queried_in(report.attacks, Linf(radius=1.0)) is None
    assert [flag.number for flag in report.diagnostics if flag.id == "M6"] == [0.0]
    record = report.attacks[0]
    found = record.model_copy(
        update={"stages": (*record.stages[:-1], record.stages[-1].model_copy(update={"broken": True}))}
    )
    assert queried_in([found], Linf(radius=SPARED)) is True
    weaker = options(
        attacks=[strong_attack(Linf(radius=SPARED), "quick"), PGD(ball=Linf(radius=2 * SPARED), steps=1)]
    )
    stronger = options(
        attacks=[strong_attack(Linf(radius=2 * SPARED), "quick"), PGD(ball=Linf(radius=SPARED), steps=1)]
    )
    assert charged_passes(victim(tiny), weaker) >= charged_passes(victim(tiny), stronger) + 66


def test_a_witness_of_an_earlier_attack_is_replayed_to_the_ensemble(tiny: Clip) -> None:
    ball = Linf(radius=8 / 255)
    asked = options(
        attacks=[{"kind": "pgd", "ball": ball.model_dump(), "steps": 10}, strong_attack(ball, "standard")]
    )
    report = probe(victim(tiny), picture(tiny), asked)
    assert [stage.name for stage in report.attacks[1].stages] == ["replay"]
    assert report.attacks[1].success_8bit


def test_other_prompt_sets_and_the_bare_image_tower_are_levels_of_knowledge(tiny: Clip) -> None:
    subject, other = victim(tiny, "bit_depth:4"), victim(tiny, "bit_depth:4", template="{}!")
    asked = options(modes=("oblivious", "transfer", "static", "adaptive"))
    report = probe(subject, picture(tiny), asked, sources=[other])
    told = [(record.knowledge, record.score, record.gradient) for record in report.attacks]
    assert told[0] == ("oblivious", "embedding_shift", "exact")
    assert [knowledge for knowledge, *_ in told[1:]] == ["transfer", "static", "adaptive"]
    assert report.charged <= charged_passes(subject, asked, sources=1)
    alone = probe(subject, picture(tiny), options(modes=("oblivious",), radius=SPARED))
    assert alone.verdict.reason == "static-only"


def test_other_prompt_sets_are_stand_ins_of_an_ensemble(tiny: Clip) -> None:
    subject, other = victim(tiny), victim(tiny, template="{}!")
    report = probe(subject, picture(tiny), strong(SPARED), sources=[other])
    assert f"transfer-{other.prompt_set}" in [stage.name for stage in report.attacks[0].stages]


@pytest.mark.parametrize(
    "attack", [Square(ball=Linf(radius=SPARED), queries=5), Noise(ball=Linf(radius=SPARED))]
)
def test_attacks_that_ask_for_values_alone_claim_nothing(tiny: Clip, attack: Square | Noise) -> None:
    report = probe(victim(tiny), picture(tiny), options(attacks=(attack,)))
    assert [(record.knowledge, record.gradient) for record in report.attacks] == [("black_box", "values")]
    assert (report.verdict.value, report.verdict.reason) == ("inconclusive", "black-box-only")


def test_a_minimum_norm_attack_is_one_like_any(tiny: Clip) -> None:
    report = probe(victim(tiny), picture(tiny), options(attacks=(FMN(ball=Linf(radius=16 / 255)),)))
    assert report.verdict.value == "broken"
    assert report.attacks[0].knowledge == "adaptive"


@pytest.mark.parametrize("ball", [Linf(radius=SPARED), L2(radius=SPARED)])
def test_the_smallest_radius_is_bracketed_and_its_broken_end_breaks(tiny: Clip, ball: BallSpec) -> None:
    subject, asked = (
        victim(tiny),
        options(attacks=({"kind": "pgd", "ball": ball.model_dump(), "steps": 1},), minimal=True),
    )
    told = list(events(subject, picture(tiny), asked))
    report = last(iter(told))
    found = report.minimal_radius
    assert found is not None
    assert found.norm == ball.kind
    assert found.broken is not None
    assert found.unbroken < found.broken <= found.farthest
    assert found.complete == (found.broken - found.unbroken <= found.width * 1.001)
    assert found.label not in (None, report.input.clean.label)
    if ball.kind == "linf" and found.level_8bit is not None:
        assert found.level_8bit / 255 >= found.broken - 1e-6
    ends = [event.broken for event in told if isinstance(event, BracketMoved) and event.broken is not None]
    assert ends == sorted(ends, reverse=True)
    assert report.verdict.value == "not-broken-within-budget", (
        "the bracket looks farther than what was asked about"
    )
    assert report.charged <= charged_passes(subject, asked)


def test_a_bracket_that_breaks_what_the_attack_could_not_changes_the_verdict(tiny: Clip) -> None:
    weak = {
        "kind": "pgd",
        "ball": {"kind": "linf", "radius": "16/255"},
        "steps": 1,
        "step": 1e-6,
        "starts": ["zero"],
    }
    report = probe(victim(tiny), picture(tiny), options(attacks=(weak,), minimal=True))
    assert report.verdict.value == "broken"
    assert [record.kind for record in report.attacks] == ["pgd", "minimal"]


WEAK = {
    "kind": "pgd",
    "ball": {"kind": "linf", "radius": "16/255"},
    "steps": 1,
    "step": 1e-6,
    "starts": ["zero"],
}


@pytest.mark.parametrize("defense", ["none", "bit_depth:5"])
def test_what_a_check_finds_is_judged_and_kept_like_any_other_witness(tiny: Clip, defense: str) -> None:
    subject, asked = (
        victim(tiny, defense),
        options(attacks=(WEAK,), modes=("adaptive",), eot=2, fresh_draws=8),
    )
    told = list(events(subject, picture(tiny), asked))
    report = last(iter(told))
    assert not report.attacks[0].success
    assert (report.verdict.value, report.verdict.bits) == ("broken", "8")
    found = [record for record in report.attacks[1:] if record.success_8bit]
    assert {(record.kind, record.knowledge) for record in found} <= {
        ("pgd", "adaptive"),
        ("square", "black_box"),
        ("noise", "black_box"),
    }
    for record in found:
        assert record.linf_levels <= 16
        assert record.adversarial_png is not None
        witness = load_pixels(base64.b64decode(record.adversarial_png), tiny.image_size)
        assert served_label(subject, witness) == record.label != report.input.clean.label
    assert {"M6", "M8"} & {flag.id for flag in report.diagnostics if flag.fired}
    names = [event.event for event in told]
    assert names.index("diagnostic") < names.index("witness")
    assert report.self_test is None
    assert report.charged <= charged_passes(subject, asked)


@dataclass(frozen=True, eq=False)
class Steady:
    """An encoder that always answers what it said of one picture."""

    features: Tensor
    backend: str = "steady"

    def __call__(self, pixels: Pixels, visual: Tensor | None) -> Tensor:
        return self.features.expand(len(pixels), -1)


def test_what_the_judge_refuses_stays_a_flag(tiny: Clip) -> None:
    subject = victim(tiny)
    steady = replace(subject, serving=Steady(subject.serving(picture(tiny)[None], None)))
    report = probe(steady, picture(tiny), options(attacks=(WEAK,), modes=("adaptive",)))
    assert (report.verdict.value, report.verdict.reason) == ("inconclusive", "masking")
    assert len(report.attacks) > 1
    assert not any(record.success or record.success_8bit for record in report.attacks)


def test_a_witness_of_a_check_moves_the_bracket_and_withdraws_what_withstood(tiny: Clip) -> None:
    report = probe(victim(tiny), picture(tiny), options(minimal=True))
    bracket, witness = report.minimal_radius, report.attacks[0]
    assert bracket is not None
    assert bracket.broken is not None
    assert brought_nearer(bracket, witness) == bracket, "it lies farther out"
    nearer = witness.model_copy(update={"linf": bracket.unbroken / 2, "linf_levels": 1.0})
    moved = brought_nearer(bracket, nearer)
    assert (moved.broken, moved.unbroken, moved.label, moved.level_8bit) == (
        bracket.unbroken / 2,
        0.0,
        witness.label,
        1,
    )
    between = witness.model_copy(update={"linf": (bracket.unbroken + bracket.broken) / 2})
    assert brought_nearer(bracket, between).unbroken == bracket.unbroken
    assert (
        brought_nearer(bracket, nearer.model_copy(update={"success": False, "success_8bit": False}))
        == bracket
    )


def test_the_story_ends_with_the_report_and_costs_only_grow(tiny: Clip) -> None:
    told = list(events(victim(tiny), picture(tiny), strong()))
    names = [event.event for event in told]
    assert names[:2] == ["started", "clean"]
    assert names[-2:] == ["verdict", "done"]
    assert names.index("witness") < names.index("attack")
    spent = [event.charged for event in told if isinstance(event, AttackProgress)]
    assert spent == sorted(spent)
    assert all(len(event.model_dump_json()) < 500 for event in told)
    assert last(iter(told)) == probe(victim(tiny), picture(tiny), strong())


def test_who_stops_listening_stops_the_probe(tiny: Clip) -> None:
    meter = Meter()
    told = events(victim(tiny), picture(tiny), strong(SPARED), meter=meter)
    for event in told:
        if isinstance(event, AttackProgress):
            break
    spent = meter.spent
    told.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator, typed as an iterator
    assert meter.spent == spent


def test_a_budget_cuts_the_search_and_what_was_found_is_told(tiny: Clip) -> None:
    report = probe(victim(tiny), picture(tiny), strong(SPARED), meter=Meter(budget=40))
    assert (report.verdict.value, report.verdict.reason, report.cut) == ("inconclusive", "budget", "budget")
    assert report.attacks[0].stages
    assert 40 <= report.charged < 60
    assert report.diagnostics == ()


def test_a_witness_outlives_the_cut_that_came_after_it(tiny: Clip) -> None:
    stop = list[bool]()
    told = events(victim(tiny), picture(tiny), options(), meter=Meter(cancelled=lambda: bool(stop)))
    for event in told:
        if isinstance(event, WitnessFound):
            stop.append(True)
        if isinstance(event, ProbeFinished):
            assert (event.report.verdict.value, event.cut) == ("broken", "cancelled")


def test_a_guard_that_refuses_ends_the_probe_with_an_answer(tiny: Clip) -> None:
    def guard(score: Score) -> Score:
        return guarded(score, deadline=time.monotonic() - 1)

    report = probe(victim(tiny), picture(tiny), options(), access=DeviceAccess(guard=guard))
    assert (report.verdict.reason, report.cut, report.attacks) == ("deadline", "deadline", ())
    assert report.input.clean.label

    def share(classifier: Any) -> Any:
        raise DeadlineExceeded("too late.")

    with pytest.raises(DeadlineExceeded):
        probe(victim(tiny), picture(tiny), options(), access=DeviceAccess(share=share))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"attacks": ({"kind": "pgd", "ball": {"kind": "linf", "radius": 0}},)}, "attacks/0/ball/radius"),
        (
            {"attacks": ({"kind": "ensemble", "ball": {"kind": "l2", "radius": "0"}},)},
            "attacks/0/ball/radius",
        ),
        ({"modes": ("transfer",)}, "modes"),
        ({"modes": ("oblivious",), "minimal": True}, "minimal"),
    ],
)
def test_what_can_t_be_tried_is_refused_before_any_work(
    tiny: Clip, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        charged_passes(victim(tiny, "jpeg"), options(**changes))
    assert refusal.value.field == field


def test_a_stand_in_over_other_labels_is_refused(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="other labels"):
        probe(victim(tiny), picture(tiny), options(), sources=[victim(tiny, labels=("cat", "dog"))])


def test_two_threads_report_what_one_after_the_other_reports(tiny: Clip) -> None:
    asked = [
        strong(minimal=True),
        options(modes=("oblivious", "adaptive"), attacks=(Square(ball=Linf(radius=8 / 255), queries=20),)),
    ]
    subjects = [victim(tiny, "resize_pad"), victim(tiny, "jpeg:60")]
    before = torch.get_rng_state()
    alone = [probe(subject, picture(tiny), each) for subject, each in zip(subjects, asked, strict=True)]
    together: dict[int, ProbeReport] = {}

    def run(index: int) -> None:
        together[index] = probe(subjects[index], picture(tiny), asked[index])

    threads = [Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[index].model_dump_json() for index in range(2)] == [
        report.model_dump_json() for report in alone
    ]
    assert torch.equal(torch.get_rng_state(), before)
