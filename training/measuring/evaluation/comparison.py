"""What follows from rows that belong together: the difference of two prompt sets on the same pictures, the
mean of one over several seeds, and over several data sets.

Every interval is a bootstrap over pictures and, where there are several, over seeds. Data sets are not drawn:
each counts the same.
"""

import itertools
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustclip.measuring import BOOTSTRAP_DRAWS, Interval, mcnemar, paired_difference
from training.measuring.evaluation.rows import Row
from training.measuring.schema.base import grouped
from training.measuring.schema.evaluation import UNUSUAL, LeftOut, Mean, MeanOverData, Paired, PairedOverData

_CHUNK = 500
_ACROSS = ("backbone", "split", "classes", "among", "defense", "threat", "eps", *UNUSUAL)
_SHARED = ("backbone", "data", *_ACROSS[1:], "n")


class Cell(NamedTuple):
    """The rows of one prompt set, as it was asked for, under one condition: a row a seed."""

    asked: str
    condition: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The method of a table; else the version that was measured, or, if seeds have their own, what was
        asked for.
        """
        if self.rows[0].result.method is not None:
            return self.asked
        versions = {row.result.prompt_set for row in self.rows}
        return versions.pop() if len(versions) == 1 else self.asked

    @property
    def folder(self) -> Path:
        return self.rows[0].folder

    @property
    def n(self) -> int:
        return len(self.rows[0].correct)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(row.result.seed for row in self.rows)

    @property
    def correct(self) -> Tensor:
        """[S, n] float: 1 where a seed was right about a picture."""
        return torch.stack([row.correct for row in self.rows]).float()

    def of_seeds(self, seeds: Sequence[int]) -> "Cell":
        by_seed = {row.result.seed: row for row in self.rows}
        return self._replace(rows=tuple(by_seed[seed] for seed in seeds))


class OverData(NamedTuple):
    """`means` over data sets, `paired` differences of such means, and prompt sets that are `left_out` of them
    because they lack cells.
    """

    means: list[MeanOverData]
    paired: list[PairedOverData]
    left_out: list[LeftOut]


def compare(rows: Sequence[Row], *, against: Collection[str] = ()) -> list[Paired]:
    """Every two prompt sets under the same condition and with the same seeds: accuracy(a) - accuracy(b) on
    the same pictures, `a` named later.

    `against`: only pairs of which one is among these, named as they were asked for.

    McNemar's test is made for one seed alone: it needs independent pictures, and several seeds have the same.
    """
    paired: list[Paired] = []
    for second, first in itertools.combinations(_cells(rows), 2):
        alike = (first.condition, first.seeds) == (second.condition, second.seeds)
        if not (alike and _wanted(first, second, against)):
            continue
        values: dict[str, Any] = first.rows[0].result.part(*_SHARED)
        if len(first.rows) == 1:
            ours, theirs = first.rows[0].correct, second.rows[0].correct
            interval, test = paired_difference(ours, theirs), mcnemar(ours, theirs)
        else:
            interval, test = resampled_mean([first.correct - second.correct]), None
            values["seeds"] = first.seeds
        values |= {"a": first.name, "b": second.name, **_named(interval, "difference"), "mcnemar": test}
        paired.append(Paired.model_validate(values))
    return paired


def over_seeds(rows: Sequence[Row]) -> list[Mean]:
    """Mean and standard deviation (n - 1) of each cell that was measured with several seeds."""
    means: list[Mean] = []
    for cell in (cell for cell in _cells(rows) if len(cell.rows) > 1):
        first = cell.rows[0].result
        values = {
            **first.part(*_SHARED),
            **({} if first.method is None else {"method": cell.asked}),
            "prompt_set": cell.name,
            "seeds": cell.seeds,
            **_named(resampled_mean([cell.correct]), "accuracy"),
            "deviation": statistics.stdev(row.result.accuracy for row in cell.rows),
        }
        means.append(Mean.model_validate(values))
    return means


def over_data(rows: Sequence[Row], *, against: Collection[str] = ()) -> OverData:
    """Means over data sets, each counted the same, and the paired differences of such means; nothing where
    only one data set was measured.

    All means under a condition are over the same cells: every data set that was measured there for any prompt
    set, with the most pictures that were, and the seeds that all these data sets have. A prompt set that
    lacks one of these cells has no mean.
    """
    found = OverData([], [], [])
    groups = grouped(_cells(rows), lambda cell: cell.rows[0].result.key(*_ACROSS))
    for group in groups.values():
        frame = _frame(group)
        if len(frame.data) < 2 or not frame.seeds:
            continue
        whole: list[list[Cell]] = []
        shared = _over(group, frame)
        for asked in dict.fromkeys(cell.asked for cell in group):
            own = {(cell.folder, cell.n): cell for cell in group if cell.asked == asked}
            seeds = {place: own[place].seeds if place in own else () for place in frame.data}
            missing = [
                {"data": name, "seeds": [seed for seed in frame.seeds if seed not in seeds[place]]}
                for place, name in frame.data.items()
            ]
            missing = [part for part in missing if part["seeds"]]
            if missing:
                values = {**shared, "prompt_set": asked, "missing": missing}
                found.left_out.append(LeftOut.model_validate(values))
            else:
                whole.append([own[place].of_seeds(frame.seeds) for place in frame.data])
        for cells in whole:
            interval = resampled_mean([cell.correct for cell in cells])
            values = {**shared, "prompt_set": cells[0].asked, **_named(interval, "accuracy")}
            found.means.append(MeanOverData.model_validate(values))
        for second, first in itertools.combinations(whole, 2):
            if _wanted(first[0], second[0], against):
                interval = resampled_mean(
                    [ours.correct - theirs.correct for ours, theirs in zip(first, second, strict=True)]
                )
                values = {**shared, "a": first[0].asked, "b": second[0].asked}
                values |= {**_named(interval, "difference"), "mcnemar": None}
                found.paired.append(PairedOverData.model_validate(values))
    return found


def resampled_mean(parts: Sequence[Tensor], *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> Interval:
    """The mean over parts of the mean of [S, n] each, with the percentile interval of drawing a part's S
    seeds and its n pictures again.
    """
    means = torch.stack(redrawn_means(parts, seed=seed, draws=draws)).mean(dim=0)
    return percentile_interval(sum(float(part.mean()) for part in parts) / len(parts), means)


def redrawn_means(parts: Sequence[Tensor], *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS) -> list[Tensor]:
    """[draws] means of each part after drawing its seeds and pictures again; parts of equal shapes are drawn
    alike in two calls.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.cat(
            [_redrawn(part, min(_CHUNK, draws - start), generator) for start in range(0, draws, _CHUNK)]
        )
        for part in parts
    ]


def percentile_interval(value: float, drawn: Tensor) -> Interval:
    """95 %."""
    low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval(value, low, high)


def _redrawn(part: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """[draws] means of a part whose seeds and pictures were drawn again; a picture is drawn for all seeds at
    once.
    """
    weights = [_weights(count, draws, generator) for count in part.shape]
    return ((weights[0] @ part) * weights[1]).sum(dim=1)


def _weights(count: int, draws: int, generator: torch.Generator) -> Tensor:
    """[draws, count] how often each of `count` was drawn with replacement, as shares."""
    drawn = torch.randint(count, (draws, count), generator=generator)
    return torch.zeros(draws, count).scatter_add_(1, drawn, torch.full(drawn.shape, 1 / count))


def _wanted(first: Cell, second: Cell, against: Collection[str]) -> bool:
    return not against or bool({first.asked, second.asked} & {*against})


def _cells(rows: Sequence[Row]) -> list[Cell]:
    cells = grouped(rows, lambda row: (row.asked, (str(row.folder), *row.result.key(*_ACROSS, "n"))))
    return [Cell(asked, condition, tuple(cell)) for (asked, condition), cell in cells.items()]


class _Frame(NamedTuple):
    """The cells that a mean has to have: data sets by folder and pictures, with their names, and seeds."""

    data: dict[tuple[Path, int], str]
    seeds: tuple[int, ...]


def _frame(group: Sequence[Cell]) -> _Frame:
    """Of each data set the cells with the most pictures, and the seeds that all data sets have of these."""
    folders = grouped(group, lambda cell: cell.folder)
    most = {folder: max(cell.n for cell in cells) for folder, cells in folders.items()}
    widest = [cell for cell in group if cell.n == most[cell.folder]]
    by_folder = grouped(widest, lambda cell: cell.folder).values()
    everywhere = set.intersection(*({seed for cell in cells for seed in cell.seeds} for cells in by_folder))
    known = dict.fromkeys(seed for cell in widest for seed in cell.seeds)
    names = {(cell.folder, cell.n): cell.rows[0].result.data for cell in widest}
    return _Frame(names, tuple(seed for seed in known if seed in everywhere))


def _over(group: Sequence[Cell], frame: _Frame) -> dict[str, Any]:
    shared = group[0].rows[0].result.part(*_ACROSS)
    own = {"data": [*frame.data.values()], "seeds": frame.seeds, "n_each": [n for _, n in frame.data]}
    return {**shared, **own}


def _named(interval: Interval, value: str) -> dict[str, float]:
    return {value: interval.value, "low": interval.low, "high": interval.high}
