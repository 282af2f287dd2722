"""The events of a long attack, and the meter that stops it. After any event the listener holds a valid
answer: witnesses are only added, never withdrawn.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from robustclip.attacks.base import BestPoints
from robustclip.errors import Cancelled, DeadlineExceeded
from robustclip.types import Cost, Pixels

Cut: TypeAlias = Literal["budget", "deadline", "cancelled"]


@dataclass(frozen=True)
class Started:
    """`charged` is the most that the pictures can cost, in charged passes."""

    pictures: int
    charged: int


@dataclass(frozen=True)
class AttackStarted:
    """`standing` pictures are still unbroken."""

    attack: str
    standing: int


@dataclass(frozen=True)
class SearchProgress:
    """After one call of the score. `margin` is the largest so far over the pictures; above 0: success."""

    attack: str
    margin: float
    cost: Cost


@dataclass(frozen=True, eq=False)
class CascadeWitness:
    """`picture` (its row) was broken by `pixels` [3, S, S] at `distance` in the ball's norm, confirmed by a
    fresh evaluation. A later witness of the same picture is nearer.
    """

    picture: int
    pixels: Pixels
    margin: float
    distance: float
    attack: str


@dataclass(frozen=True)
class AttackEnded:
    """How many pictures the attack broke, how many are unbroken, and the whole cost so far."""

    attack: str
    broken: int
    standing: int
    cost: Cost


@dataclass(frozen=True)
class Bracket:
    """A picture's smallest radius so far: `broken` has a witness (None: there is none yet), `unbroken` is the
    largest radius below it that withstood the search, which proves nothing.
    """

    unbroken: float
    broken: float | None


@dataclass(frozen=True)
class Done:
    """`standing` are the unbroken rows; `cut` is what ended the attack early."""

    standing: tuple[int, ...]
    cost: Cost
    cut: Cut | None


Event: TypeAlias = Started | AttackStarted | SearchProgress | CascadeWitness | AttackEnded | Bracket | Done


@dataclass(eq=False)
class Meter:
    """Counts the cost and stops an attack between two score calls: `budget` in charged passes, `deadline` a
    `time.monotonic()`.
    """

    budget: int | None = None
    deadline: float | None = None
    cancelled: Callable[[], bool] | None = None
    spent: Cost = field(default_factory=Cost)
    cut: Cut | None = None

    def metered(self, search: Iterator[BestPoints]) -> Iterator[BestPoints]:
        """The search until it ends or is stopped, also by a guarded score; its record stays valid."""
        before = self.spent
        with self.stopping():
            for record in search:
                self.spent = before.plus(record.cost)
                yield record
                if self.over():
                    return

    @contextmanager
    def stopping(self) -> Generator[None]:
        """Where a guarded score says that the time is over or the caller is gone, what is inside ends."""
        try:
            yield
        except Cancelled:
            self.cut = "cancelled"
        except DeadlineExceeded:
            self.cut = "deadline"

    def pay(self, cost: Cost) -> None:
        """Count a cost outside a search."""
        self.spent = self.spent.plus(cost)

    def over(self) -> bool:
        """Whether to stop; once true it stays true."""
        if self.cut is None:
            if self.cancelled is not None and self.cancelled():
                self.cut = "cancelled"
            elif self.deadline is not None and time.monotonic() > self.deadline:
                self.cut = "deadline"
            elif self.budget is not None and self.spent.charged >= self.budget:
                self.cut = "budget"
        return self.cut is not None
