import pytest
import torch
from torch import Tensor
from toys import gratings, linear, smallest_radius, trained_conv

from robustclip.attacks.apgd import APGD, _checkpoints
from robustclip.attacks.pgd import PGD
from robustclip.scores.kinds import label_score
from robustclip.scores.losses import runners_up, untargeted_margin
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, Linf
from robustclip.types import Cost

PIXELS, TARGETS = gratings(16, seed=9)
SEEDS = draw_seeds(9, 16)
NEAR = Linf(radius=2 / 255)


def test_checkpoints_are_the_papers() -> None:
    assert _checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _checkpoints(1) == []
    assert all(_checkpoints(steps)[-1] < steps for steps in range(2, 60))


@pytest.mark.parametrize("labels", [2, 3, 4, 9, 10])
@pytest.mark.parametrize("kind", ["linf", "l2"])
def test_apgd_breaks_a_linear_classifier_just_above_the_exact_radius_and_not_below(
    labels: int, kind: str
) -> None:
    toy = linear(labels)
    pixels = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(labels))
    logits = toy(pixels, SEEDS)
    targets = logits.argmax(dim=1)
    exact = torch.tensor(
        [
            smallest_radius(toy, picture, int(target), kind)
            for picture, target in zip(pixels, targets, strict=True)
        ]
    )
    attack = APGD(ball=Linf(radius=1) if kind == "linf" else L2(radius=1))
    rivals = runners_up(logits, targets, labels - 1)  # every other label: rows of one batch
    rows = torch.arange(6).repeat_interleave(labels - 1)
    score = label_score("targeted_margin", toy, targets[rows], rivals=rivals.flatten())

    def broken(share: float) -> Tensor:
        attacked = attack(score, pixels[rows], draw_seeds(0, len(rows)), radius=share * exact[rows])
        return (untargeted_margin(toy(attacked.pixels, SEEDS), targets[rows]) > 0).reshape(6, -1).any(dim=1)

    assert broken(1.02).all()
    assert not broken(0.99).any()


def test_a_run_costs_a_pass_each_way_a_step_and_one_look_at_the_end() -> None:
    attacked = APGD(ball=NEAR, steps=6, restarts=2, stop="never")(
        label_score("margin", trained_conv(), TARGETS), PIXELS, SEEDS
    )
    assert attacked.cost == Cost(forward=2 * 7 * 16, backward=2 * 6 * 16)
    assert attacked.cost == APGD(ball=NEAR, steps=6, restarts=2).bill(16)


def test_teams_leave_together() -> None:
    score = label_score("margin", trained_conv(), TARGETS).select(torch.arange(16).repeat(2))
    attack, teams = APGD(ball=NEAR, steps=30), torch.arange(16).repeat(2)
    *_, last = attack.search(score, PIXELS.repeat(2, 1, 1, 1), draw_seeds(3, 32), teams=teams)
    ended = torch.where(last.trace_margin.isnan(), 0, 1).sum(dim=0)  # points seen
    assert torch.equal(ended[:16], ended[16:])
    assert (ended < 31).any()
    assert (ended == 31).any()
    assert ((last.first_success[:16] < 0) != (last.first_success[16:] < 0)).any()


def test_it_outdoes_pgd_of_as_many_steps_where_the_step_length_is_wrong() -> None:
    score = label_score("cross_entropy", trained_conv(), TARGETS)
    climbed = APGD(ball=NEAR, steps=20, stop="never")(score, PIXELS, SEEDS).value
    badly = PGD(ball=NEAR, steps=20, step=8 / 255, starts=("random",), stop="never")(
        score, PIXELS, SEEDS
    ).value
    assert (climbed > badly).float().mean() > 0.8
