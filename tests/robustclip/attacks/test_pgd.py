from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from toys import gratings, linear, smallest_radius, trained_conv

from robustclip.attacks import parse_attack
from robustclip.attacks.pgd import FGSM, PGD
from robustclip.errors import Cancelled, InvalidInput
from robustclip.scores.kinds import EmbeddingShift, label_score
from robustclip.scores.losses import untargeted_margin
from robustclip.scores.wrappers import averaged, guarded
from robustclip.seeds import derive, draw_seeds, row_normal
from robustclip.threat import L2, Linf
from robustclip.types import Cost, Evaluation, Logits, Pixels, Score, Seeds

PIXELS, TARGETS = gratings(16, seed=9)
SEEDS = draw_seeds(9, 16)
SCORE = label_score("margin", trained_conv(), TARGETS)
NEAR = Linf(radius=2 / 255)


@dataclass(frozen=True)
class Unreachable:
    """A score whose goal is never reached."""

    score: Score

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        seen = self.score(pixels, seeds, grad=grad)
        return seen._replace(margin=-torch.ones_like(seen.margin))

    def select(self, rows: Tensor) -> "Unreachable":
        return Unreachable(self.score.select(rows))


@pytest.mark.parametrize("labels", [2, 3, 4, 9, 10])
@pytest.mark.parametrize("kind", ["linf", "l2"])
def test_pgd_breaks_a_linear_classifier_just_above_the_exact_radius_and_not_below(
    labels: int, kind: str
) -> None:
    toy = linear(labels)
    pixels = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(labels))
    targets = toy(pixels, SEEDS).argmax(dim=1)
    exact = torch.tensor(
        [
            smallest_radius(toy, picture, int(target), kind)
            for picture, target in zip(pixels, targets, strict=True)
        ]
    )
    attack = PGD(ball=Linf(radius=1) if kind == "linf" else L2(radius=1), steps=60)
    goals = torch.arange(labels).repeat_interleave(6)  # every other label as a goal: rows of one batch
    rows = torch.arange(6).repeat(labels)
    keep = goals != targets[rows]
    goals, rows = goals[keep], rows[keep]

    def broken(share: float) -> Tensor:
        attacked = attack(
            label_score("margin", toy, targets[rows], goals),
            pixels[rows],
            draw_seeds(0, len(rows)),
            radius=share * exact[rows],
        )
        wrong = untargeted_margin(toy(attacked.pixels, SEEDS), targets[rows]) > 0
        return torch.zeros(6).index_add(0, rows, wrong.float()) > 0

    assert broken(1.02).all()
    assert not broken(0.99).any()


@pytest.mark.parametrize("kind", ["linf", "l2"])
def test_pgd_equals_a_transcription_of_the_paper(kind: str) -> None:
    radius = 3 / 255 if kind == "linf" else 0.3
    x, step = PIXELS.clone(), 2.5 * radius / 7
    for _ in range(7):
        x = x.requires_grad_()
        loss = torch.nn.functional.cross_entropy(trained_conv()(x, SEEDS), TARGETS, reduction="sum")
        (g,) = torch.autograd.grad(loss, x)
        if kind == "linf":
            x = torch.max(torch.min(x.detach() + step * g.sign(), PIXELS + radius), PIXELS - radius)
        else:
            delta = x.detach() + step * g / g.norm(p=2, dim=(1, 2, 3), keepdim=True) - PIXELS
            x = PIXELS + delta * (radius / delta.norm(p=2, dim=(1, 2, 3), keepdim=True)).clamp(max=1)
        x = x.clamp(0, 1)
    ball = Linf(radius=radius) if kind == "linf" else L2(radius=radius)
    attacked = PGD(ball=ball, steps=7, starts=("zero",), keep="last", stop="never")(
        label_score("cross_entropy", trained_conv(), TARGETS), PIXELS, SEEDS
    )
    assert torch.allclose(attacked.pixels, x, atol=1e-6)


def test_fgsm_is_one_step_of_the_whole_radius() -> None:
    gradient = SCORE(PIXELS, SEEDS, grad=True).grad
    assert gradient is not None
    expected = (PIXELS + NEAR.radius * gradient.sign()).clamp(0, 1)
    attacked = FGSM(ball=NEAR)(SCORE, PIXELS, SEEDS)
    assert attacked.cost == Cost(forward=32, backward=16)
    assert torch.allclose(attacked.pixels, expected, atol=1e-6)
    drawn = FGSM(ball=NEAR, random_start=True)(SCORE, PIXELS, SEEDS)
    assert not torch.equal(drawn.pixels, attacked.pixels)


def test_the_best_point_is_returned_with_its_own_value() -> None:
    attacked = PGD(ball=Linf(radius=4 / 255), steps=6, step=4 / 255, restarts=2, stop="never")(
        SCORE, PIXELS, SEEDS
    )  # a step that overshoots
    assert torch.equal(attacked.margin, attacked.trace_margin.amax(dim=0))
    assert torch.allclose(SCORE(attacked.pixels, SEEDS, grad=False).margin, attacked.margin, atol=1e-5)
    assert (attacked.trace_margin[-1] < attacked.margin).any()


def test_a_point_past_the_goal_beats_any_value() -> None:
    """Cross-entropy may rise between points that don't fool; what fools is kept, whatever its value."""

    @dataclass(frozen=True)
    class Script:
        """Values and margins by step, whatever the pixels."""

        value: tuple[float, ...] = (1.0, 5.0, 2.0, 9.0)
        margin: tuple[float, ...] = (-1.0, -1.0, 0.5, -0.1)
        calls: list[int] = field(default_factory=list)

        def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
            step = len(self.calls)
            self.calls.append(step)
            ones = torch.ones(len(pixels))
            return Evaluation(
                self.value[step] * ones, self.margin[step] * ones, torch.ones_like(pixels) if grad else None
            )

        def select(self, rows: Tensor) -> "Script":
            return self

    attack = PGD(ball=NEAR, steps=3, starts=("zero",), stop="never")
    kept = attack(Script(), PIXELS[:1], SEEDS[:1])
    assert (kept.value.item(), kept.margin.item(), kept.first_success.item()) == (2.0, 0.5, 2)
    last = attack.model_copy(update={"keep": "last"})(Script(), PIXELS[:1], SEEDS[:1])
    assert last.value.item() == 9.0
    unreached = attack(Script(margin=(-1.0,) * 4), PIXELS[:1], SEEDS[:1])
    assert (unreached.value.item(), unreached.first_success.item()) == (9.0, -1)
    undefined = attack(
        Script(value=(1.0, torch.nan, torch.nan, 0.0), margin=(-1.0,) * 4), PIXELS[:1], SEEDS[:1]
    )
    assert undefined.value.item() == 1.0


def test_broken_rows_leave_for_good_and_cost_nothing_more() -> None:
    early = PGD(ball=Linf(radius=3 / 255), restarts=2)(SCORE, PIXELS, SEEDS)
    broken = early.margin > 0
    assert 0 < broken.sum() < len(broken)  # some leave, some stay: otherwise this tests nothing
    assert torch.equal(early.first_success >= 0, broken)
    steps = torch.arange(len(early.trace_margin))[:, None]
    gone = (early.first_success >= 0) & (steps > early.first_success)
    assert torch.equal(early.trace_margin.isnan(), gone)
    assert torch.equal(early.trace_value.isnan(), gone)
    assert early.cost.forward == int((~gone).sum())
    full = PGD(ball=Linf(radius=3 / 255), restarts=2, stop="never")(SCORE, PIXELS, SEEDS)
    assert full.cost == Cost(forward=3 * 11 * 16, backward=3 * 10 * 16)
    assert full.cost == PGD(ball=NEAR, restarts=2).bill(16)
    several = PGD(ball=NEAR, steps=4, starts=("zero", "random"), restarts=2)
    assert [several.seen_from(start) for start in ("zero", "random")] == [range(5), range(5, 10)]
    assert not several.seen_from("one_sided")
    assert (full.margin >= early.margin).all()
    assert torch.equal(full.first_success, early.first_success)


@pytest.mark.parametrize(("restarts", "batches"), [(2, [3 * 16]), (9, [8 * 16, 2 * 16])])
def test_starts_climb_side_by_side_where_no_row_leaves_early(restarts: int, batches: list[int]) -> None:
    """Eight at once. What each start sees is what it sees alone; only the number of calls differs."""
    rows: list[int] = []

    @dataclass(frozen=True)
    class Counted:
        score: Score

        def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
            rows.append(len(pixels))
            return self.score(pixels, seeds, grad=grad)

        def select(self, rows: Tensor) -> "Counted":
            return Counted(self.score.select(rows))

    attack = PGD(ball=NEAR, steps=4, restarts=restarts, stop="never")
    together = attack(Counted(SCORE), PIXELS, SEEDS)
    assert rows == [size for size in batches for _ in range(5)]
    assert together.cost == attack.bill(16)
    alone = PGD(ball=NEAR, steps=4, restarts=restarts)(
        Unreachable(SCORE), PIXELS, SEEDS
    )  # nobody leaves, start after start
    assert torch.allclose(together.trace_value, alone.trace_value, atol=1e-5)
    assert alone.cost == together.cost


def test_no_rows_are_no_work() -> None:
    nobody = torch.arange(0)
    for attack in (PGD(ball=NEAR), PGD(ball=L2(radius=1)), FGSM(ball=NEAR)):
        attacked = attack(SCORE.select(nobody), PIXELS[nobody], SEEDS[nobody])
        assert attacked.pixels.shape == (0, 3, 32, 32)
        assert attacked.cost == Cost()


def test_radius_zero_costs_one_look() -> None:
    for attack in (PGD(ball=Linf(radius=0)), FGSM(ball=L2(radius=0), random_start=True)):
        attacked = attack(SCORE, PIXELS, SEEDS)
        assert torch.equal(attacked.pixels, PIXELS)
        assert attacked.cost == Cost(forward=16)
        assert torch.equal(attacked.value, SCORE(PIXELS, SEEDS, grad=False).value)


def test_a_radius_a_row_equals_an_attack_a_radius() -> None:
    radii = torch.arange(16) / 2 / 255
    attacked = PGD(ball=Linf(radius=1))(SCORE, PIXELS, SEEDS, radius=radii)
    for row in (0, 1, 5, 15):
        alone = slice(row, row + 1)
        own = PGD(ball=Linf(radius=float(radii[row])))(
            SCORE.select(torch.tensor([row])), PIXELS[alone], SEEDS[alone]
        )
        assert torch.allclose(attacked.pixels[alone], own.pixels, atol=1e-6)


def test_starts_are_where_they_say() -> None:
    seen: list[Pixels] = []

    def watch(pixels: Pixels) -> Tensor:
        seen.append(pixels.detach().clone())
        return pixels.flatten(1)

    PGD(ball=NEAR, steps=1, starts=("zero", "random", "one_sided"), restarts=2)(
        EmbeddingShift(watch, PIXELS.flatten(1), "l2"), PIXELS, SEEDS
    )
    zero, first, second, brighter, again = seen[::2]
    assert torch.equal(zero, PIXELS)
    assert not torch.equal(first, second)
    assert not torch.equal(brighter, again)
    assert (first < PIXELS).any()
    assert (brighter >= PIXELS).all()


@dataclass(frozen=True, eq=False)
class Randomized:
    """Logits with seeded noise; remembers the seeds it was asked with."""

    asked: list[tuple[int, ...]] = field(default_factory=list)
    labels: tuple[str, ...] = trained_conv().labels

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        self.asked.append(tuple(seeds.tolist()))
        logits = trained_conv()(pixels, seeds)
        return logits + 0.1 * row_normal(seeds, tuple(logits.shape[1:]), like=logits)


def test_a_randomized_victim_never_draws_the_same_noise_twice() -> None:
    victim = Randomized()
    attack = PGD(ball=NEAR, steps=5, stop="never")
    once = attack(label_score("margin", victim, TARGETS), PIXELS, SEEDS)
    drawn = [seed for asked in victim.asked for seed in asked]
    assert len(set(drawn)) == len(drawn) == 12 * 16
    assert torch.equal(
        attack(label_score("margin", Randomized(), TARGETS), PIXELS, SEEDS).pixels, once.pixels
    )
    assert not set(drawn) & set(derive(SEEDS, "start-1").tolist())


def test_an_averaged_score_is_paid_by_the_draw() -> None:
    attacked = PGD(ball=NEAR, steps=2, starts=("zero",), stop="never")(
        averaged(label_score("margin", Randomized(), TARGETS), 4), PIXELS, SEEDS
    )
    assert attacked.cost == Cost(forward=3 * 64, backward=2 * 64)


def test_a_cancelled_attack_ends_at_the_next_step() -> None:
    answers = iter([False] * 3 + [True])
    with pytest.raises(Cancelled):
        PGD(ball=NEAR)(guarded(SCORE, cancelled=lambda: next(answers)), PIXELS, SEEDS)


def test_a_score_without_gradients_is_refused() -> None:
    @dataclass(frozen=True)
    class Blind:
        def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
            return Evaluation(-torch.ones(len(pixels)), -torch.ones(len(pixels)), None)

        def select(self, rows: Tensor) -> "Blind":
            return self

    with pytest.raises(InvalidInput, match="gradient"):
        PGD(ball=NEAR)(Blind(), PIXELS, SEEDS)


def test_a_seed_a_row_is_needed() -> None:
    with pytest.raises(InvalidInput) as refused:
        PGD(ball=NEAR)(SCORE, PIXELS, SEEDS[:3])
    assert refused.value.field == "seeds"


BALL = {"kind": "linf", "radius": "2/255"}


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"kind": "pgd"}, "attack/ball"),
        ({"kind": "pgd", "ball": BALL, "steps": 0}, "attack/steps"),
        ({"kind": "pgd", "ball": BALL, "steps": 10**9}, "attack/steps"),
        ({"kind": "pgd", "ball": BALL, "step": "0"}, "attack/step"),
        ({"kind": "pgd", "ball": BALL, "starts": []}, "attack/starts"),
        ({"kind": "pgd", "ball": BALL, "starts": ["zero", "middle"]}, "attack/starts/1"),
        ({"kind": "pgd", "ball": BALL, "starts": ["zero"], "restarts": 3}, "attack"),
        ({"kind": "pgd", "ball": BALL | {"radius": "nan"}}, "attack/ball/radius"),
        ({"kind": "pgd", "ball": BALL | {"radius": 2}}, "attack/ball/radius"),
        ({"kind": "pgd", "ball": BALL | {"kind": "l1"}}, "attack/ball"),
        ({"kind": "fgsm", "ball": BALL, "steps": 3}, "attack/steps"),
        ({"kind": "cw", "ball": BALL}, "attack"),
        ("pgd", "attack"),
        (None, "attack"),
    ],
)
def test_a_wrong_attack_is_refused_with_the_path_to_what_is_wrong(data: object, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_attack(data)
    assert refused.value.field == field


def test_an_attack_survives_json() -> None:
    for attack in (PGD(ball=NEAR, steps=7, restarts=2), FGSM(ball=L2(radius=1), random_start=True)):
        assert parse_attack(attack.model_dump(mode="json")) == attack
    assert parse_attack({"kind": "pgd", "ball": {"kind": "linf", "radius": "2/255"}}) == PGD(ball=NEAR)
