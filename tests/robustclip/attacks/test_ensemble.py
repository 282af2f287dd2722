import threading
import time
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor
from toys import LinearClassifier, gratings, linear, smallest_radius, trained_conv

from robustclip.attacks.cascade import StandIn
from robustclip.attacks.ensemble import Ensemble
from robustclip.attacks.events import (
    AttackEnded,
    AttackStarted,
    CascadeWitness,
    Done,
    Event,
    Meter,
    SearchProgress,
    Started,
)
from robustclip.errors import Cancelled, DeadlineExceeded, InvalidInput, NoDecisionToAttack
from robustclip.models.classifier import zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.scores.kinds import EmbeddingShift, label_score
from robustclip.scores.wrappers import guarded, recorded
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, Linf
from robustclip.types import Logits, Pixels, Seeds

PIXELS, TARGETS = gratings(12, seed=9)
SEEDS = draw_seeds(9, 12)
NEAR = Linf(radius=2 / 255)
QUICK = Ensemble(ball=NEAR, preset="quick")
SCORE = label_score("margin", trained_conv(), TARGETS)


def done(events: Iterable[Event]) -> Done:
    *_, last = events
    assert isinstance(last, Done)
    return last


def easy(labels: int, pictures: int = 3) -> tuple[LinearClassifier, Pixels, Tensor]:
    toy = linear(labels)
    pixels = torch.rand(pictures, 3, 4, 4, generator=torch.Generator().manual_seed(labels))
    return toy, pixels, toy(pixels, SEEDS).argmax(dim=1)


@pytest.mark.parametrize(("labels", "together"), [(2, 1), (3, 9), (4, 1), (9, 9), (10, 1)])
def test_any_number_of_labels_breaks_just_above_the_exact_radius_and_not_below(
    labels: int, together: int
) -> None:
    toy, pixels, targets = easy(labels)
    ball = Linf(radius=1) if labels % 2 else L2(radius=1)
    exact = torch.tensor(
        [
            smallest_radius(toy, picture, int(target), ball.kind)
            for picture, target in zip(pixels, targets, strict=True)
        ]
    )
    attack = Ensemble(ball=ball, together=together)
    score = label_score("margin", toy, targets)
    attacked = attack(score, pixels, SEEDS[:3], radius=exact * torch.tensor([1.02, 1.02, 0.99]))
    assert torch.equal(
        toy(attacked.pixels, SEEDS).argmax(dim=1) != targets, torch.tensor([True, True, False])
    )
    assert torch.equal(attacked.margin > 0, torch.tensor([True, True, False]))
    assert attacked.cost.charged <= attack.bill(3, labels=labels).charged


def test_the_losses_fit_the_number_of_labels() -> None:
    def losses(labels: int, targeted: bool = False) -> dict[str, list[str]]:
        stages = Ensemble(ball=NEAR).stages(labels, targeted=targeted)
        return {
            stage.name: [variant.loss for variant in stage.variants]
            for stage in stages
            if stage.name.startswith("apgd")
        }

    entropy = ["cross_entropy", "cross_entropy"]
    assert losses(2) == {"apgd-cross-entropy": entropy, "apgd-margin": ["margin"]}
    assert losses(3) == {
        "apgd-cross-entropy": entropy,
        "apgd-dlr": ["dlr"],
        "apgd-targeted": ["targeted_margin"] * 2,
    }
    assert losses(4) == {"apgd-cross-entropy": entropy, "apgd-targeted": ["targeted_dlr"] * 3}
    assert (
        losses(1000) == losses(10) == {"apgd-cross-entropy": entropy, "apgd-targeted": ["targeted_dlr"] * 9}
    )
    assert losses(10, targeted=True) == {"apgd-cross-entropy": entropy, "apgd-dlr": ["dlr"]}


def test_the_bill_is_that_of_every_call() -> None:
    bill = recorded(SCORE)
    attacked = QUICK.model_copy(update={"widen": 2})(bill, PIXELS, SEEDS)
    assert attacked.cost == bill.cost
    assert attacked.cost.backward > 0


def test_presets_cost_what_they_say() -> None:
    bounds = [
        Ensemble(ball=NEAR, preset=preset).bill(1).charged for preset in ("quick", "standard", "thorough")
    ]
    assert bounds == sorted(bounds)
    assert [round(bound, -2) for bound in bounds] == [200, 3100, 13000]


def test_a_thousand_labels_work_and_two_equal_ones_do_no_harm() -> None:
    toy, pixels, targets = easy(1000)
    assert (
        QUICK.model_copy(update={"ball": Linf(radius=0.1)})(
            label_score("margin", toy, targets), pixels, SEEDS[:3]
        ).margin
        > 0
    ).all()


def test_two_equal_labels_tie_and_a_tie_is_no_success() -> None:
    toy, pixels, targets = easy(5)

    class Twins:
        labels = ("a", "b", "c", "d", "e", "f")

        def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
            logits = toy(pixels, seeds)
            return torch.cat([logits, logits[:, targets[:1]]], dim=1)

    attacked = QUICK.model_copy(update={"ball": Linf(radius=1e-4)})(
        label_score("margin", Twins(), targets[:1]), pixels[:1], SEEDS[:1]
    )
    assert attacked.margin.tolist() == [0.0]
    assert attacked.pixels.isfinite().all()


def test_one_label_is_no_decision_and_embeddings_are_none() -> None:
    with pytest.raises(NoDecisionToAttack):
        label_score("margin", linear(1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="decision"):
        QUICK(EmbeddingShift(lambda pixels: pixels.flatten(1), PIXELS.flatten(1)), PIXELS, SEEDS)


def test_a_goal_is_reached_or_not_whatever_else_wins() -> None:
    toy, pixels, targets = easy(10)
    goals = (targets + 1) % 10
    attacked = Ensemble(ball=Linf(radius=0.5), preset="quick")(
        label_score("margin", toy, targets, goals), pixels, SEEDS[:3]
    )
    assert torch.equal(toy(attacked.pixels, SEEDS).argmax(dim=1), goals)
    near = Ensemble(ball=Linf(radius=1e-3))(label_score("margin", toy, targets, goals), pixels, SEEDS[:3])
    assert (near.margin <= 0).all()


def test_events_tell_the_whole_story() -> None:
    bill = recorded(SCORE)
    events = list(QUICK.events(bill, PIXELS, SEEDS))
    last = events[-1]
    assert isinstance(events[0], Started)
    assert events[0].pictures == 12
    assert isinstance(last, Done)
    assert last.cost == bill.cost
    assert last.cost.charged <= events[0].charged
    fallen = [event for event in events if isinstance(event, CascadeWitness)]
    assert sorted([witness.picture for witness in fallen] + list(last.standing)) == list(range(12))
    assert 0 < len(fallen) < 12
    for witness in fallen:
        assert NEAR.distance(witness.pixels[None], PIXELS[witness.picture][None]) <= 2 / 255 + 1e-6
        assert trained_conv()(witness.pixels[None], SEEDS).argmax() != TARGETS[witness.picture]
        assert witness.margin > 0
    names = [event.attack for event in events if isinstance(event, AttackStarted)]
    assert (
        names
        == [event.attack for event in events if isinstance(event, AttackEnded)]
        == ["noise", "margin-pgd", "square"]
    )
    costs = [event.cost.charged for event in events if isinstance(event, SearchProgress | AttackEnded)]
    assert costs == sorted(costs)


def test_the_first_attack_that_succeeds_ends_it() -> None:
    events = list(Ensemble(ball=Linf(radius=32 / 255)).events(SCORE, PIXELS, SEEDS))
    assert done(events).standing == ()
    assert {event.attack for event in events if isinstance(event, AttackStarted)} <= {"noise", "margin-pgd"}


def test_rows_of_one_batch_break_what_rows_one_by_one_break() -> None:
    toy, pixels, targets = easy(10, pictures=6)
    exact = torch.tensor(
        [
            smallest_radius(toy, picture, int(target), "linf")
            for picture, target in zip(pixels, targets, strict=True)
        ]
    )
    radius, score = exact * torch.tensor([1.05, 0.95] * 3), label_score("margin", toy, targets)

    def events(together: int) -> list[Event]:
        attack = Ensemble(ball=Linf(radius=1), together=together)
        return list(
            attack.events(score, pixels, draw_seeds(2, 6), radius=radius, meter=Meter(budget=6 * 1500))
        )  # all but the last stage

    found = [events(together) for together in (1, 9)]
    assert done(found[0]).standing == done(found[1]).standing == (1, 3, 5)
    steps = [
        sum(isinstance(event, SearchProgress) and event.attack == "apgd-targeted" for event in each)
        for each in found
    ]
    assert steps[1] < 60 < steps[0]


@pytest.mark.parametrize("budget", [1, 100, 700])
def test_a_budget_cuts_between_two_calls_and_what_was_found_stays(budget: int) -> None:
    events = list(QUICK.events(SCORE, PIXELS, SEEDS, meter=Meter(budget=budget)))
    last = done(events)
    assert last.cut == "budget"
    assert budget <= last.cost.charged <= budget + 5 * 12
    assert len(last.standing) == 12 - sum(isinstance(event, CascadeWitness) for event in events)


def test_a_deadline_and_a_cancellation_end_it_with_an_answer() -> None:
    assert (
        done(QUICK.events(SCORE, PIXELS, SEEDS, meter=Meter(deadline=time.monotonic() - 1))).cut == "deadline"
    )
    calls = iter(range(10_000))
    assert (
        done(QUICK.events(SCORE, PIXELS, SEEDS, meter=Meter(cancelled=lambda: next(calls) > 5))).cut
        == "cancelled"
    )
    for guard, cut in (
        (guarded(SCORE, deadline=time.monotonic() - 1), "deadline"),
        (guarded(SCORE, cancelled=lambda: True), "cancelled"),
    ):
        assert done(QUICK.events(guard, PIXELS, SEEDS)).cut == cut
    with pytest.raises(Cancelled):
        QUICK(guarded(SCORE, cancelled=lambda: True), PIXELS, SEEDS)
    with pytest.raises(DeadlineExceeded):
        QUICK(guarded(SCORE, deadline=time.monotonic() - 1), PIXELS, SEEDS)


def test_a_guard_that_gives_up_in_the_middle_leaves_what_was_found() -> None:
    calls = iter(range(10_000))
    guard = guarded(SCORE, cancelled=lambda: next(calls) > 40)
    last = done(QUICK.events(guard, PIXELS, SEEDS))
    assert last.cut == "cancelled"
    assert last.cost.forward > 12


def test_a_listener_may_leave() -> None:
    bill = recorded(SCORE)
    events = QUICK.events(bill, PIXELS, SEEDS)
    next(event for event in events if isinstance(event, SearchProgress))
    spent = bill.cost
    assert isinstance(events, Iterator)
    del events
    assert bill.cost == spent


def test_a_judge_has_the_last_word_and_the_picture_stays() -> None:
    asked: list[int] = []

    def judge(candidates: Pixels, rows: Tensor) -> Tensor:
        asked.extend(rows.tolist())
        return rows % 2 == 0

    events = list(QUICK.events(SCORE, PIXELS, SEEDS, judge=judge))
    assert all(witness.picture % 2 == 0 for witness in events if isinstance(witness, CascadeWitness))
    odd = {picture for picture in asked if picture % 2}
    assert odd
    assert odd <= set(done(events).standing)


def test_a_judge_is_asked_about_untouched_pictures_too() -> None:
    wrong = (TARGETS + 1) % 4
    score = label_score("margin", trained_conv(), wrong)
    assert {
        event.attack for event in QUICK.events(score, PIXELS, SEEDS) if isinstance(event, CascadeWitness)
    } == {"clean"}

    def moved(candidates: Pixels, rows: Tensor) -> Tensor:
        return NEAR.distance(candidates, PIXELS[rows]) > 1 / 255

    wider = QUICK.model_copy(
        update={"widen": 4}
    )  # for every search begins at the picture, and would end there
    fallen = [
        event
        for event in wider.events(score, PIXELS, SEEDS, judge=moved)
        if isinstance(event, CascadeWitness)
    ]
    assert {event.attack for event in fallen} == {"noise"}
    assert len(fallen) == len(PIXELS)


def test_an_earlier_witness_is_replayed_first_inside_the_ball() -> None:
    attacked = QUICK(SCORE, PIXELS, SEEDS)
    broken = (attacked.margin > 0).nonzero().flatten()
    events = list(QUICK.events(SCORE, PIXELS, draw_seeds(1, 12), replays=attacked.pixels))
    replayed = [
        event.picture for event in events if isinstance(event, CascadeWitness) and event.attack == "replay"
    ]
    assert replayed == broken.tolist()
    far = list(
        QUICK.events(
            SCORE, PIXELS, SEEDS, replays=torch.rand(PIXELS.shape, generator=torch.Generator().manual_seed(0))
        )
    )
    assert all(
        NEAR.distance(event.pixels[None], PIXELS[event.picture][None]) <= 2 / 255 + 1e-6
        for event in far
        if isinstance(event, CascadeWitness)
    )


def test_a_source_breaks_what_masks_its_gradient() -> None:
    class Masked:
        labels = trained_conv().labels

        def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
            return trained_conv()(pixels.detach(), seeds) + 0 * pixels.mean(dim=(1, 2, 3))[:, None]

    victim = label_score("margin", Masked(), TARGETS)
    events = list(QUICK.events(victim, PIXELS, SEEDS, sources=(StandIn("undefended", SCORE),)))
    fallen = {event.attack for event in events if isinstance(event, CascadeWitness)}
    assert "transfer-undefended" in fallen
    assert "margin-pgd" not in fallen


def test_widening_finds_witnesses_of_larger_margin() -> None:
    narrow, wide = (QUICK.model_copy(update={"widen": steps})(SCORE, PIXELS, SEEDS) for steps in (0, 8))
    broken = narrow.margin > 0
    assert torch.equal(broken, wide.margin > 0)
    assert (wide.margin >= narrow.margin).all()
    assert wide.margin[broken].mean() > 2 * narrow.margin[broken].mean()


def test_two_threads_find_what_one_after_the_other_finds() -> None:
    score = SCORE.select(torch.arange(4))
    expected = QUICK(score, PIXELS[:4], SEEDS[:4])
    state = torch.random.get_rng_state()
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(QUICK(score, PIXELS[:4], SEEDS[:4]).pixels))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(pixels, expected.pixels) for pixels in found)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_search_in_bfloat16_keeps_only_what_float32_confirms(tiny: Clip) -> None:
    classifier = zero_shot(tiny, Prompts(), ("cat", "dog", "car", "tree"))
    pixels = PIXELS[:6]
    targets = classifier(pixels, SEEDS).argmax(dim=1)
    score = label_score("margin", classifier, targets)
    radius = Linf(radius=1 / 255)
    counts = {}
    for precision in ("float32", "bfloat16"):
        attacked = Ensemble(ball=radius, preset="quick", precision=precision)(score, pixels, SEEDS[:6])
        assert torch.equal(attacked.margin > 0, classifier(attacked.pixels, SEEDS).argmax(dim=1) != targets)
        counts[precision] = int((attacked.margin > 0).sum())
    assert abs(counts["float32"] - counts["bfloat16"]) <= 1
    assert all(parameter.grad is None for parameter in tiny.model.parameters())
