"""What follows from measured accuracies, and all that `robustclip evaluate --json` prints."""

from typing import Literal

from training.measuring.schema.base import Difference, Interval, Line
from training.measuring.schema.rows import (
    LeftOut,
    Mean,
    MeanOverData,
    Paired,
    PairedOverData,
    Result,
    Subject,
)

SUBJECT = ("backbone", "data", "split", "classes", "among", "method", "prompt_set", "defense", "seed")


class Check(Subject):
    """A masking check: which lines of its subject it looked at, as (threat, eps), and what it says of them.
    It speaks against the last of these, whose attack should have found more.
    """

    rows: tuple[tuple[str, str], ...]
    id: str
    name: str
    fired: bool
    severity: Literal["hard", "soft"]
    number: float
    threshold: float
    sentence: str
    advice: str


class Headline(Subject):
    """Accuracy under T3; None where the hard checks in `refused` forbid one."""

    eps: str
    n: int
    accuracy: float | None
    low: float | None
    high: float | None
    refused: tuple[str, ...]


class Worst(Interval):
    """What the worst of several attacks leaves, and which they are."""

    value: float
    of: tuple[str, ...]


class Unequal(Line):
    """What a defense was attacked with (`taken`), other than no defense was (`against`)."""

    threat: str
    what: str
    taken: int
    against: int


class Illusion(Subject, Difference):
    """How much of a defense is ignorance: accuracy on pictures made without it (`static`) less that under the
    worst attack on it; and what it holds against no defense at all (`gain`), None where nobody measured that.
    """

    eps: str
    n: int
    static: float
    random: bool
    worst: Worst
    only_looks_strong: bool
    gain: Difference | None
    unequal: tuple[Unequal, ...]
    holds: Literal["more", "less"] | None


class Evaluation(Line):
    """What nothing follows for is left out."""

    results: tuple[Result, ...]
    paired: tuple[Paired, ...] = ()
    over_seeds: tuple[Mean, ...] = ()
    over_data: tuple[MeanOverData, ...] = ()
    paired_over_data: tuple[PairedOverData, ...] = ()
    left_out_over_data: tuple[LeftOut, ...] = ()
    checks: tuple[Check, ...] = ()
    headlines: tuple[Headline, ...] = ()

    @property
    def fired(self) -> list[Check]:
        return [check for check in self.checks if check.fired]
