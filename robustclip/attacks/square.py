"""Square (Andriushchenko et al. 2020, arXiv 1912.00049): random search over square patches at the ball's
surface, without gradients.

Deviations from the authors' code: windows are drawn for each row by itself; pictures of fewer than five
pixels a side work; for a randomized victim incumbent and candidate can be evaluated on equal draws
(`redraw`).
"""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from robustclip.attacks.base import BallAttack, Options, Search
from robustclip.seeds import row_uniform
from robustclip.threat import Linf
from robustclip.types import Cost, Evaluation, Pixels, Seeds

MAX_QUERIES = 100_000
_TILES = 5  # a side of the L2 start
# queries of 10,000 after which the window's share of the picture halves
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square(BallAttack):
    """Change one window at a time, and keep the change where it raised the score.

    queries  candidates, after the picture itself and the start
    share    the first window's share of the picture
    redraw   for a randomized victim: evaluate the incumbent again with each candidate, on the same draws
             (twice the cost)
    stop     `broken`: a row that reached its goal leaves, and its best point is the result; `never`: every
             row takes all queries, and the last incumbent is the result, since the best of many noisy values
             is a lucky one
    """

    quick: ClassVar[Options] = {"queries": 60}
    kind: Literal["square"] = "square"
    queries: int = Field(default=5000, ge=1, le=MAX_QUERIES)
    share: float = Field(default=0.8, gt=0, le=1)
    redraw: bool = False
    stop: Literal["broken", "never"] = "broken"

    def passes(self) -> Cost:
        return Cost(2 + self.queries * (2 if self.redraw else 1))

    def points(self) -> int:
        return self.queries + 2

    def still(self) -> "Square":
        return self.model_copy(update={"queries": 0})

    def explore(self, search: Search) -> Iterator[None]:
        current, never, last = search.pixels, self.stop == "never", self.queries + 1 if self.queries else 0
        value = margin = torch.full_like(search.radii, -torch.inf)
        for query in range(last + 1):
            streams = search.streams(f"query-{query}")
            candidate = self._candidate(search, current, query, streams)
            if self.redraw and query > 1:
                again = search.score.select(search.rows)(current, streams, grad=False)
                value, margin = again.value, again.margin
                search.record.cost = search.record.cost.plus(again.cost)
            kept = torch.full_like(search.rows, not never, dtype=torch.bool)
            seen = search.ask(candidate, streams, grad=False, eligible=kept)
            fooled = (seen.margin > 0) & (not never)
            better = (seen.value > value) | fooled | (query == 1)
            current = torch.where(better[:, None, None, None], candidate, current)
            value, margin = torch.where(better, seen.value, value), torch.where(better, seen.margin, margin)
            stay = search.leave(fooled)
            current, value, margin = current[stay], value[stay], margin[stay]
            if never and query == last:
                search.record.add(search.rows, current, Evaluation(value, margin, None), query)
            yield

    def _candidate(self, search: Search, current: Pixels, query: int, streams: Seeds) -> Pixels:
        """The picture itself, then the start, then the incumbent with one window changed."""
        origin, limits, linf = search.origin, search.limits, isinstance(self.ball, Linf)
        if query == 0:
            candidate = origin
        elif query == 1:
            candidate = origin + (_stripes if linf else _tiles)(origin, limits, streams)
        else:
            side = _side(self.share, query - 2, self.queries, origin.shape[-1])
            candidate = (_window_linf if linf else _window_l2)(current, origin, limits, side, streams)
        return self.ball.project(candidate, origin, radius=limits)


def _side(share: float, query: int, queries: int, size: int) -> int:
    """Pixels a side of the window, by the paper's schedule for 10,000 queries stretched over ours."""
    halvings = sum(query / queries * 10_000 > at for at in _HALVINGS)
    return min(max(round(math.sqrt(share / 2**halvings) * size), 1), size)


def _stripes(origin: Pixels, radii: Tensor, seeds: Seeds) -> Tensor:
    """Vertical stripes of one random sign for each channel and column."""
    signs = _signs(row_uniform(seeds, (origin.shape[1], 1, origin.shape[3]), like=origin))
    return (radii[:, None, None, None] * signs).expand_as(origin)


def _window_linf(current: Pixels, origin: Pixels, radii: Tensor, side: int, seeds: Seeds) -> Pixels:
    """A window in which each channel goes by twice the radius up or down, to the ball's one side or the
    other.
    """
    drawn = row_uniform(seeds, (2 + origin.shape[1],), like=origin)
    step = 2 * radii[:, None, None, None] * _signs(drawn[:, 2:])[:, :, None, None]
    return current + step * _placed(torch.ones(side, side), drawn[:, 0], drawn[:, 1], origin)


def _tiles(origin: Pixels, radii: Tensor, seeds: Seeds) -> Tensor:
    """A grid of bumps, each of one random sign a channel, together of the ball's length."""
    channels, size = origin.shape[1], origin.shape[-1]
    tiles = min(_TILES, size)
    side, rest = size // tiles, size % tiles // 2
    drawn = row_uniform(seeds, (tiles, tiles, channels + 1), like=origin)
    change = torch.zeros_like(origin)
    bump = _bump(side).to(origin)
    for row in range(tiles):
        for column in range(tiles):
            tile = torch.where((drawn[:, row, column, -1] < 0.5)[:, None, None, None], bump, bump.T)
            top, left = rest + row * side, rest + column * side
            change[:, :, top : top + side, left : left + side] = (
                tile * _signs(drawn[:, row, column, :channels])[:, :, None, None]
            )
    return _scaled(change, radii)


def _window_l2(current: Pixels, origin: Pixels, radii: Tensor, side: int, seeds: Seeds) -> Pixels:
    """Length moves: one window is emptied, and what it held, with what the ball still allows, goes to
    another, shaped like a bump.
    """
    channels, size = origin.shape[1], origin.shape[-1]
    side = min(max(side + 1 - side % 2, min(3, size)), size)
    drawn = row_uniform(seeds, (5 + channels,), like=origin)
    change = current - origin
    window = torch.ones(side, side)
    target, emptied = (_placed(window, drawn[:, first], drawn[:, first + 1], origin) for first in (0, 2))
    bump = _bump(side)
    upright, lying = (_placed(shape, drawn[:, 0], drawn[:, 1], origin) for shape in (bump, bump.T))
    held = _norm(change * target)
    shape = (
        torch.where((drawn[:, 4] < 0.5)[:, None, None, None], upright, lying)
        * _signs(drawn[:, 5:])[:, :, None, None]
    )
    shape = shape + change * target / held.clamp_min(1e-12)
    spare = (radii.square() - change.flatten(1).square().sum(dim=1)).clamp_min(0.0)[
        :, None, None, None
    ] / channels
    both = torch.maximum(target, emptied)
    length = (spare + _norm(change * both).square()).sqrt()
    moved = change * (1 - both) + shape / _norm(shape).clamp_min(1e-12) * length
    return origin + _scaled(moved, radii)


def _bump(side: int) -> Tensor:
    """[side, side] of unit length: two halves of opposite sign, each a pyramid of nested rectangles, the
    inner ones of larger weight.
    """
    halves = [_pyramid(rows, side) for rows in (side // 2, side - side // 2) if rows]
    whole = torch.cat([halves[0], *(-half for half in halves[1:])])
    return whole / whole.norm()


def _pyramid(rows: int, columns: int) -> Tensor:
    middle_row, middle_column = rows // 2, columns // 2
    rings = max(middle_row, middle_column) + 1
    weights = 1 / torch.arange(1, rings + 1).square()
    outside_in = (
        weights.flip(0).cumsum(0).flip(0)
    )  # a cell lies in every rectangle from its own ring outwards
    ring = torch.maximum(
        (torch.arange(rows) - middle_row).abs()[:, None], (torch.arange(columns) - middle_column).abs()[None]
    )
    pyramid = outside_in[ring]
    return pyramid / pyramid.norm()


def _placed(patch: Tensor, row: Tensor, column: Tensor, like: Pixels) -> Tensor:
    """[B, 1, S, S] zeros with the patch in them, at a place that `row` and `column` [B] in [0, 1) choose
    evenly.
    """
    side, size = len(patch), like.shape[-1]
    top, left = ((part * (size - side + 1)).long() for part in (row, column))
    within = torch.arange(side, device=like.device)
    places = (top[:, None] + within)[:, :, None] * size + (left[:, None] + within)[:, None]
    flat = like.new_zeros(len(like), size * size)
    return flat.scatter(1, places.flatten(1), patch.to(like).flatten().expand(len(like), -1)).reshape(
        -1, 1, size, size
    )


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _norm(change: Tensor) -> Tensor:
    """[B, C, 1, 1] length of each channel."""
    return torch.linalg.vector_norm(change, dim=(2, 3), keepdim=True)


def _scaled(change: Tensor, radii: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(change, dim=(1, 2, 3)).clamp_min(1e-12)
    return change * (radii / length)[:, None, None, None]
