"""What a long attack tells while it runs, and what stops it. After any event the listener holds a valid
answer: witnesses are only ever added.
"""

import time
from collections.abc import Callable, Iterator
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
    """After one call of the score. `margin` is the attack's best so far over its pictures: above 0 one of
    them is fooled.
    """

    attack: str
    margin: float
    cost: Cost


@dataclass(frozen=True, eq=False)
class CascadeWitness:
    """`picture` (its row) was broken by `pixels` [3, S, S] at `distance` in the ball's norm, judged anew.

    A later one of the same picture is nearer.
    """

    picture: int
    pixels: Pixels
    margin: float
    distance: float
    attack: str


@dataclass(frozen=True)
class AttackEnded:
    """How many pictures fell to it, how many stand, and what everything took so far."""

    attack: str
    broken: int
    standing: int
    cost: Cost


@dataclass(frozen=True)
class Bracket:
    """A picture's smallest radius so far: `broken` has a witness (None: none was found), `unbroken` is the
    largest below it that withstood: effort, no bound..

    """

    unbroken: float
    broken: float | None


@dataclass(frozen=True)
class Done:
    """`standing` are the rows that nothing broke; `cut` says what ended the attack before its time."""

    standing: tuple[int, ...]
    cost: Cost
    cut: Cut | None


Event: TypeAlias = Started | AttackStarted | SearchProgress | CascadeWitness | AttackEnded | Bracket | Done


@dataclass(eq=False)
class Meter:
    """Counts what was spent and says when it is enough: `budget` in charged passes, `deadline` a
    `time.monotonic()`.

    Looked at between score calls.
    """

    budget: int | None = None
    deadline: float | None = None
    cancelled: Callable[[], bool] | None = None
    spent: Cost = field(default_factory=Cost)
    cut: Cut | None = None

    def metered(self, search: Iterator[BestPoints]) -> Iterator[BestPoints]:
        """The search, until it ends or must; what it found so far stays in its record. A guarded score that
        refuses to go on also ends it.
        """
        before = self.spent
        try:
            for record in search:
                self.spent = before.plus(record.cost)
                yield record
                if self.over():
                    return
        except Cancelled:
            self.cut = "cancelled"
        except DeadlineExceeded:
            self.cut = "deadline"

    def pay(self, cost: Cost) -> None:
        """Enter what was spent outside a search."""
        self.spent = self.spent.plus(cost)

    def over(self) -> bool:
        """Whether to stop; once it says so it stays so."""
        if self.cut is None:
            if self.cancelled is not None and self.cancelled():
                self.cut = "cancelled"
            elif self.deadline is not None and time.monotonic() > self.deadline:
                self.cut = "deadline"
            elif self.budget is not None and self.spent.charged >= self.budget:
                self.cut = "budget"
        return self.cut is not None
