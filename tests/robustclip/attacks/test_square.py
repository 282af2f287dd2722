import torch
from toys import gratings, trained_conv

from robustclip.attacks.square import Square, _bump, _side, _stripes, _tiles, _window_l2, _window_linf
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, Linf
from robustclip.types import Evaluation, Pixels, Seeds

PIXELS, TARGETS = gratings(16, seed=9)
SEEDS = draw_seeds(9, 16)
RADII = torch.full((16,), 0.1)


def test_windows_shrink_by_the_papers_schedule() -> None:
    sides = [_side(0.8, query, 10_000, 224) for query in range(10_000)]
    assert sides[0] == sides[10] == 200  # sqrt(0.8) * 224
    assert [sides[at + 1] for at in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)] == [
        142,
        100,
        71,
        50,
        35,
        25,
        18,
        13,
        9,
    ]
    assert [_side(0.8, query, 5000, 224) for query in (5, 6)] == [
        200,
        142,
    ]  # stretched over the queries there are
    assert _side(0.001, 0, 10, 8) == 1


def test_the_linf_start_is_stripes_at_the_balls_surface() -> None:
    change = _stripes(PIXELS, RADII, SEEDS)
    assert torch.equal(change.abs(), torch.full_like(PIXELS, 0.1))
    assert torch.equal(change, change[:, :, :1].expand_as(change))
    assert (change[:, :, 0, 1:] != change[:, :, 0, :-1]).any()


def test_an_linf_window_changes_one_square_of_each_channel() -> None:
    grey = torch.full_like(PIXELS, 0.5)
    change = _window_linf(grey, grey, RADII, 5, SEEDS) - grey
    assert torch.equal((change != 0).flatten(1).sum(dim=1), torch.full((16,), 3 * 25))
    assert torch.allclose(change[change != 0].abs(), torch.tensor(0.2))
    places = (change[:, 0] != 0).float().flatten(1).argmax(dim=1)
    assert len(places.unique()) > 8  # a place of its own for each row


def test_a_bump_is_two_opposite_pyramids_of_unit_length() -> None:
    for side in (1, 2, 3, 4, 7, 25):
        bump = _bump(side)
        assert bump.shape == (side, side)
        assert torch.allclose(bump.norm(), torch.tensor(1.0))
        assert side < 2 or (bump[: side // 2].min() > 0 > bump[side // 2 :].max())


def test_l2_starts_and_windows_keep_the_balls_length_exactly() -> None:
    grey = torch.full_like(PIXELS, 0.5)
    start = grey + _tiles(grey, RADII, SEEDS)
    assert torch.allclose((start - grey).flatten(1).norm(dim=1), RADII)
    moved = _window_l2(start, grey, RADII, 7, SEEDS)
    assert torch.allclose((moved - grey).flatten(1).norm(dim=1), RADII)
    elsewhere = ((moved - start).abs() > 1e-7).any(dim=1).flatten(1).sum(dim=1)
    assert (elsewhere <= 2 * 49).all()
    assert (elsewhere >= 49).all()


def test_small_pictures_have_windows_too() -> None:
    class Bright:
        def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
            value = pixels.flatten(1).sum(dim=1)
            return Evaluation(value, torch.full_like(value, -1.0), None)

        def select(self, rows: torch.Tensor) -> "Bright":
            return self

    for size in (1, 3, 4, 6):
        grey = torch.full((2, 3, size, size), 0.5)
        for ball in (Linf(radius=0.1), L2(radius=0.3)):
            attacked = Square(ball=ball, queries=12)(Bright(), grey, SEEDS[:2])
            assert (ball.distance(attacked.pixels, grey) <= ball.radius + 1e-5).all()
            assert (attacked.value >= grey.flatten(1).sum(dim=1)).all()


def test_it_breaks_without_gradients_and_bills_none() -> None:
    score = label_score("margin", trained_conv(), TARGETS)
    for ball in (Linf(radius=16 / 255), L2(radius=4)):
        attacked = Square(ball=ball, queries=60)(score, PIXELS, SEEDS)
        assert (attacked.margin > 0).float().mean() > 0.6
        assert attacked.cost.backward == 0


def test_redrawing_compares_on_equal_draws() -> None:
    asked: list[list[int]] = []

    class Lucky:
        """A victim whose every draw adds much noise: without equal draws the luckiest candidate wins for
        good.
        """

        def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
            asked.append(seeds.tolist())
            noise = torch.tensor([float(seed % 1000) for seed in seeds.tolist()])
            value = pixels.flatten(1).mean(dim=1) + noise
            return Evaluation(value, torch.full_like(value, -1.0), None)

        def select(self, rows: torch.Tensor) -> "Lucky":
            return self

    grey = torch.full((2, 3, 8, 8), 0.5)
    Square(ball=Linf(radius=0.1), queries=20, redraw=True)(Lucky(), grey, SEEDS[:2])
    assert len(asked) == 2 + 2 * 20
    assert all(incumbent == candidate for incumbent, candidate in zip(asked[2::2], asked[3::2], strict=True))


def test_who_never_stops_asks_all_its_queries_and_answers_with_the_incumbent() -> None:
    score = label_score("margin", trained_conv(), TARGETS)
    patient, hasty = (
        Square(ball=Linf(radius=16 / 255), queries=30, stop=stop) for stop in ("never", "broken")
    )
    attacked = patient(score, PIXELS, SEEDS)
    assert attacked.cost == patient.bill(len(PIXELS))
    assert torch.allclose(score(attacked.pixels, SEEDS, grad=False).margin, attacked.margin, atol=1e-4)
    assert attacked.margin.mean() > hasty(score, PIXELS, SEEDS).margin.mean()
    assert torch.equal(patient(score, PIXELS, SEEDS, radius=torch.zeros(16)).pixels, PIXELS)
