import time
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from toys import LinearClassifier, Lottery, gratings, linear, smallest_radius, trained_conv

from robustclip.attacks.events import Bracket, CascadeWitness, Done, Event, Meter, Started
from robustclip.attacks.minimal import Minimal
from robustclip.errors import InvalidInput
from robustclip.scores.kinds import EmbeddingShift, label_score
from robustclip.scores.wrappers import averaged, guarded, recorded
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import L2, Linf
from robustclip.types import Logits, Pixels, Seeds

PIXELS, TARGETS = gratings(1, seed=5)
SEEDS = draw_seeds(9, 1)
FAR = Linf(radius=64 / 255)


def bracket(events: Iterable[Event]) -> Bracket:
    return [event for event in events if isinstance(event, Bracket)][-1]


@pytest.mark.parametrize("labels", [2, 3, 4, 9, 10])
@pytest.mark.parametrize("kind", ["linf", "l2"])
def test_the_broken_end_is_never_below_the_exact_radius_and_at_most_two_per_cent_above(
    labels: int, kind: str
) -> None:
    toy = linear(labels)
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(labels))
    targets = toy(pixels, SEEDS).argmax(dim=1)
    exact = smallest_radius(toy, pixels[0], int(targets[0]), kind)
    minimal = Minimal(
        ball=Linf(radius=1) if kind == "linf" else L2(radius=7), width=0.01 * exact, preset="quick"
    )
    events = list(minimal.events(label_score("margin", toy, targets), pixels, SEEDS))
    found = bracket(events)
    assert found.broken is not None
    assert exact * (1 - 1e-5) <= found.broken <= 1.02 * exact
    assert found.broken - found.unbroken <= minimal.closeness * 1.001
    witness = [event for event in events if isinstance(event, CascadeWitness)][-1]
    assert toy(witness.pixels[None], SEEDS).argmax() != targets[0]
    assert witness.distance == found.broken
    assert isinstance(events[-1], Done)
    assert events[-1].cost.charged <= minimal.bill(labels=labels).charged


def test_a_bracket_only_tightens_from_above_and_events_come_in_order() -> None:
    minimal = Minimal(ball=FAR, preset="quick")
    assert minimal.closeness == 0.05 / 255
    events = list(minimal.events(label_score("margin", trained_conv(), TARGETS), PIXELS, SEEDS))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Done)
    broken = [event.broken for event in events if isinstance(event, Bracket) and event.broken is not None]
    assert broken == sorted(broken, reverse=True)
    assert 0.9 * broken[-1] < bracket(events).unbroken < broken[-1] - 1e-6
    assert events[-1].standing == ()
    assert events[-1].cut is None


def test_a_radius_that_the_cascade_breaks_after_all_is_withdrawn() -> None:
    """Margins say nothing about the way here: only random search finds it, and finds points whose distance is
    the radius up to rounding.
    """

    class Masked:
        labels = ("dark", "bright")

        def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
            brightest = pixels.detach().flatten(1).amax(dim=1)
            return torch.stack([torch.full_like(brightest, 0.5003), brightest], dim=1) + 0 * pixels.mean()

    grey = torch.full((1, 3, 8, 8), 0.5)
    events = list(
        Minimal(ball=FAR, width=1e-5, preset="quick").events(
            label_score("margin", Masked(), torch.tensor([0])), grey, SEEDS
        )
    )
    found = bracket(events)
    assert found.broken is not None
    assert found.broken > 0.0003 - 1e-6
    brackets = [event for event in events if isinstance(event, Bracket) and event.broken is not None]
    assert all(each.unbroken < each.broken - 9e-7 for each in brackets if each.broken is not None)


def test_a_known_witness_saves_the_search_for_the_first() -> None:
    score = label_score("margin", trained_conv(), TARGETS)
    minimal = Minimal(ball=FAR, preset=None)
    first = list(minimal.events(score, PIXELS, SEEDS))
    known = [event for event in first if isinstance(event, CascadeWitness)][-1].pixels[None]
    again = list(minimal.events(score, PIXELS, SEEDS, known=known))
    assert bracket(again).broken == pytest.approx(bracket(first).broken, abs=0.05 / 255)
    assert isinstance(first[-1], Done)
    assert isinstance(again[-1], Done)
    assert again[-1].cost.charged < first[-1].cost.charged


def test_what_no_radius_breaks_is_said_to_stand() -> None:
    constant = LinearClassifier(torch.zeros(3, 3 * 32 * 32), torch.tensor([1.0, 0.0, 0.0]))
    events = list(
        Minimal(ball=FAR, preset="quick").events(
            label_score("margin", constant, torch.tensor([0])), PIXELS, SEEDS
        )
    )
    assert bracket(events) == Bracket(pytest.approx(FAR.radius), None)
    assert events[-1] == Done((0,), events[-1].cost, None)


def test_a_picture_that_is_wrong_untouched_breaks_at_zero() -> None:
    events = list(
        Minimal(ball=FAR).events(label_score("margin", trained_conv(), (TARGETS + 1) % 4), PIXELS, SEEDS)
    )
    assert bracket(events) == Bracket(0.0, 0.0)
    assert events[-1].cost.charged < 10


def test_a_judge_has_the_last_word() -> None:
    def far_enough(candidates: Tensor, rows: Tensor) -> Tensor:
        return FAR.distance(candidates, PIXELS) > 20 / 255

    events = list(
        Minimal(ball=FAR, preset=None).events(
            label_score("margin", trained_conv(), TARGETS), PIXELS, SEEDS, judge=far_enough
        )
    )
    found = bracket(events)
    assert found.broken is None or found.broken > 20 / 255


def test_a_radius_is_withstood_only_if_what_fooled_there_was_judged() -> None:
    """A mean margin above 0 fools every search; most draws are wrong from a brightness of 1 / 400 above grey,
    which a rejected nearer point hides.
    """
    grey, exact = torch.full((1, 3, 8, 8), 0.5), 1 / 400

    def most_draws(candidates: Tensor, rows: Tensor) -> Tensor:
        said = [
            Lottery()(candidates, derive(SEEDS[rows], f"fresh-{draw}")).argmax(dim=1) for draw in range(64)
        ]
        return torch.stack(said).float().mean(dim=0) > 0.5

    score = recorded(averaged(label_score("margin", Lottery(), torch.tensor([0])), 20))
    minimal = Minimal(ball=FAR, preset=None)
    events = list(minimal.events(score, grey, SEEDS, judge=most_draws, known=grey + 8 / 255))
    brackets = [event for event in events if isinstance(event, Bracket) and event.broken is not None]
    assert all(
        each.unbroken < exact < each.broken * (1 + 1e-5) for each in brackets if each.broken is not None
    )
    assert bracket(events).broken == pytest.approx(exact, abs=minimal.closeness)
    assert isinstance(events[-1], Done)
    assert events[-1].cost == score.cost
    assert events[-1].cost.charged <= 20 * minimal.bill(labels=2).charged


def test_a_search_that_fools_at_every_radius_is_judged_at_every_radius() -> None:
    """Without a witness to begin with: what a judge takes only at the whole radius is found there, behind
    seven nearer points that it rejects.
    """

    def at_the_edge(candidates: Tensor, rows: Tensor) -> Tensor:
        return FAR.distance(candidates, PIXELS) > 0.9 * FAR.radius

    always = LinearClassifier(torch.zeros(2, 3 * 32 * 32), torch.tensor([0.0, 1.0]))
    score = label_score("margin", always, torch.tensor([0]))
    found = bracket(Minimal(ball=FAR, preset=None).events(score, PIXELS, SEEDS, judge=at_the_edge))
    assert found.broken is not None
    assert found.unbroken < 0.9 * FAR.radius <= found.broken


def test_a_radius_whose_point_the_budget_left_unjudged_did_not_withstand() -> None:
    judged = 0

    def nothing(candidates: Tensor, rows: Tensor) -> Tensor:
        nonlocal judged
        judged += len(candidates)
        return torch.zeros(len(candidates), dtype=torch.bool)

    always = LinearClassifier(torch.zeros(2, 3 * 32 * 32), torch.tensor([0.0, 1.0]))
    score = label_score("margin", always, torch.tensor([0]))
    list(Minimal(ball=FAR, preset=None).events(score, PIXELS, SEEDS, judge=nothing))
    everything, judged = judged, 0
    for budget in range(20, 60):
        events = list(
            Minimal(ball=FAR, preset=None).events(
                score, PIXELS, SEEDS, meter=Meter(budget=budget), judge=nothing
            )
        )
        assert bracket(events).unbroken == pytest.approx(FAR.radius if judged == everything else 0.0)
        judged = 0


def test_a_budget_cuts_and_says_so() -> None:
    minimal = Minimal(ball=FAR, preset="standard")
    for budget in (1, 40, 400):
        events = list(
            minimal.events(
                label_score("margin", trained_conv(), TARGETS), PIXELS, SEEDS, meter=Meter(budget=budget)
            )
        )
        assert isinstance(events[-1], Done)
        assert events[-1].cut == "budget"
        assert events[-1].cost.charged < budget + 60
    late = guarded(label_score("margin", trained_conv(), TARGETS), deadline=time.monotonic() - 1)
    events = list(minimal.events(late, PIXELS, SEEDS))
    assert events[-1] == Done((0,), events[-1].cost, "deadline")


def test_it_is_about_one_picture_and_a_decision() -> None:
    two = label_score("margin", trained_conv(), TARGETS.repeat(2))
    with pytest.raises(InvalidInput) as refused:
        Minimal(ball=FAR).events(two, PIXELS.repeat(2, 1, 1, 1), draw_seeds(0, 2))
    assert refused.value.field == "pixels"
    with pytest.raises(InvalidInput):
        Minimal(ball=FAR).events(
            EmbeddingShift(lambda pixels: pixels.flatten(1), PIXELS.flatten(1)), PIXELS, SEEDS
        )
