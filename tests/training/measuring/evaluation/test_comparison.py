from pathlib import Path

import measured
import pytest
import torch
from torch import Tensor

from robustclip.measuring import mcnemar, paired_difference
from training.measuring.evaluation.comparison import compare, over_data, over_seeds, resampled_mean
from training.measuring.evaluation.rows import Row
from training.measuring.schema.base import Difference
from training.measuring.schema.evaluation import Result


def row(asked: str, correct: Tensor, *, seed: int = 0, data: str = "cats", version: str = "@1") -> Row:
    values = measured.row(
        prompt_set=asked.replace("%", str(seed)) + version,
        data=data,
        threat="T2",
        eps="1/255",
        n=len(correct),
        accuracy=float(correct.float().mean()),
        seed=seed,
    )
    names = tuple(map(str, range(len(correct))))
    return Row(Result.model_validate(values), asked, Path(data), names, correct)


def drawn(share: float, n: int = 200, *, seed: int = 0) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share


def test_one_seed_is_compared_picture_by_picture() -> None:
    plain, learned = drawn(0.4, seed=1), drawn(0.6, seed=2)
    (pair,) = compare([row("plain", plain), row("learned", learned)])
    expected = paired_difference(learned, plain)
    assert (pair.a, pair.b) == ("learned@1", "plain@1")
    assert (pair.difference, pair.low, pair.high) == expected
    assert pair.mcnemar == mcnemar(learned, plain)
    assert "seeds" not in pair.as_json()


def test_several_seeds_are_drawn_again_with_the_pictures() -> None:
    rows = [row(asked, drawn(share, seed=10 * seed + place), seed=seed) for place, (asked,
    share) in enumerate((("plain", 0.4), ("own-%", 0.6)))
            for seed in (0, 1, 2)]  # fmt: skip
    (pair,) = compare(rows)
    assert (pair.a, pair.b, pair.seeds, pair.mcnemar) == ("own-%", "plain@1", (0, 1, 2), None)
    assert pair.low < pair.difference < pair.high
    assert pair.difference == pytest.approx(
        sum(found.result.accuracy for found in rows[3:]) / 3 - sum(f.result.accuracy for f in rows[:3]) / 3
    )
    means = over_seeds(rows)
    assert [mean.prompt_set for mean in means] == ["plain@1", "own-%"]
    assert means[0].deviation == pytest.approx(
        torch.tensor([found.result.accuracy for found in rows[:3]]).std().item()
    )


def test_rows_of_other_seeds_or_conditions_are_not_compared() -> None:
    assert compare([row("plain", drawn(0.4)), row("learned", drawn(0.6), seed=1)]) == []
    assert compare([row("plain", drawn(0.4)), row("learned", drawn(0.6), data="dogs")]) == []
    assert over_seeds([row("plain", drawn(0.4))]) == []


def test_data_sets_count_the_same_whatever_their_size() -> None:
    sizes = {"cats": 50, "dogs": 400}
    rows = [
        row(asked, drawn(share, sizes[data], seed=place), data=data)
        for place, (asked, share, data) in enumerate(
            (a, s, d) for d in sizes for a, s in (("plain", 0.2), ("learned", 0.7))
        )
    ]
    means, (pair,), left_out = over_data(rows)
    assert left_out == []
    accuracy = {(found.asked, found.result.data): found.result.accuracy for found in rows}
    assert means[0].accuracy == pytest.approx((accuracy["plain", "cats"] + accuracy["plain", "dogs"]) / 2)
    assert pair.difference == pytest.approx(means[1].accuracy - means[0].accuracy)
    assert pair.data == ("cats", "dogs")
    assert pair.decided
    assert over_data(rows[:2]) == ([], [], [])


def grid(*lacking: tuple[str, str, int], seeds: tuple[int, ...] = (0, 1)) -> list[Row]:
    """Three methods on two data sets, but for some cells."""
    cells = (
        (asked, data, seed)
        for seed in seeds
        for data in ("cats", "dogs")
        for asked in ("plain", "learned", "dear")
    )
    return [
        row(asked, drawn(0.5, seed=place), data=data, seed=seed)
        for place, (asked, data, seed) in enumerate(cells)
        if (asked, data, seed) not in lacking
    ]


@pytest.mark.parametrize(
    ("lacking", "missing"),
    [
        ([("dear", "cats", 0), ("dear", "cats", 1)], [{"data": "cats", "seeds": [0, 1]}]),
        ([("dear", "dogs", 1)], [{"data": "dogs", "seeds": [1]}]),
        (
            [("dear", "cats", 0), ("dear", "dogs", 1)],
            [{"data": "cats", "seeds": [0]}, {"data": "dogs", "seeds": [1]}],
        ),
    ],
)
def test_who_lacks_a_data_set_or_a_seed_has_no_mean_and_is_named(
    lacking: list[tuple[str, str, int]], missing: list[dict[str, object]]
) -> None:
    found, whole = over_data(grid(*lacking)), over_data(grid())
    assert [(mean.prompt_set, mean.data, mean.seeds) for mean in found.means] == [
        (name, ("cats", "dogs"), (0, 1)) for name in ("plain", "learned")
    ]
    assert [(pair.a, pair.b) for pair in found.paired] == [("learned", "plain")]
    assert [(out.prompt_set, out.threat, out.as_json()["missing"]) for out in found.left_out] == [
        ("dear", "T2", missing)
    ]
    assert len(whole.means) == len(whole.paired) == 3
    assert whole.left_out == []


def test_a_seed_that_a_data_set_has_of_nobody_yet_is_in_no_mean() -> None:
    begun = [
        found for found in grid(seeds=(0, 1, 2)) if (found.result.data, found.result.seed) != ("dogs", 2)
    ]
    found, finished = over_data(begun), over_data(grid())
    assert [mean.seeds for mean in found.means] == [(0, 1)] * 3
    assert [mean.accuracy for mean in found.means] == pytest.approx(
        [mean.accuracy for mean in finished.means]
    )


def test_a_data_set_counts_once_with_as_many_pictures_as_were_measured() -> None:
    fewer = [
        row(asked, drawn(0.5, 50, seed=7), data="cats", seed=seed)
        for asked in ("plain", "learned")
        for seed in (0, 1)
    ]
    found = over_data([*fewer, *grid()])
    assert [mean.n_each for mean in found.means] == [(200, 200)] * 3
    assert over_data([row("plain", drawn(0.5, n)) for n in (50, 200)]) == ([], [], [])


def test_the_interval_of_a_mean_is_as_wide_as_that_of_a_share() -> None:
    found = resampled_mean([drawn(0.5, 400)[None].float()])
    assert 0.04 < (found.high - found.low) / 2 < 0.058  # 1.96 sqrt(0.25 / 400) = 0.049


def test_seeds_that_agree_add_nothing_and_seeds_that_differ_widen() -> None:
    pictures = drawn(0.5, 300).float()
    alike, apart = pictures.expand(3, -1), torch.stack([pictures, pictures, torch.zeros_like(pictures)])
    one, three, unequal = (resampled_mean([part]) for part in (pictures[None], alike, apart))
    assert (three.high - three.low) == pytest.approx(one.high - one.low, rel=0.15)
    assert unequal.high - unequal.low > 1.5 * (three.high - three.low)


@pytest.mark.parametrize(
    ("low", "high", "p", "says"),
    [(0.1, 0.2, None, True), (0.1, 0.2, 0.01, True), (0.1, 0.2, 0.2, False), (-0.1, 0.2, None, False)],
)
def test_a_difference_is_one_if_all_tests_say_so(
    low: float, high: float, p: float | None, says: bool
) -> None:
    assert Difference(difference=low, low=low, high=high, mcnemar=p).decided is says
