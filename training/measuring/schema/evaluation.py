"""What `robustclip evaluate --json` and `robustclip suite` print: measured accuracies, and what is computed
from them.
"""

from fractions import Fraction
from typing import Literal

from pydantic import JsonValue

from training.measuring.schema.base import Accuracy, Difference, Interval, Line, OnData, Pictures
from training.threats import THREAT_LEVELS, Threat

# what a line names where an attack took other than the level's own, and how it is said
UNUSUAL = {
    "steps": "{} steps",
    "queries": "{} queries",
    "restarts": "{} starts",
    "draws": "{} draws",
    "search": "searched in {}",
}


class Condition(Pictures):
    """Under which attack something was measured: threat level, radius as people write it, and effort where it
    is not the level's own.
    """

    threat: Threat
    eps: str
    steps: int | None = None
    queries: int | None = None
    restarts: int | None = None
    draws: int | None = None
    search: str | None = None

    @property
    def unusual(self) -> dict[str, int | str]:
        """What the attack took, where that is not the level's own."""
        return self.part(*UNUSUAL)

    @property
    def rank(self) -> tuple[int, Fraction]:
        """Where a condition stands among others: by what the attacker knows, then by the radius."""
        return [*THREAT_LEVELS].index(self.threat), Fraction(self.eps)


class Named(Pictures):
    """`method`: the name that a table gives to a prompt set, whichever version was measured."""

    method: str | None = None
    prompt_set: str

    @property
    def label(self) -> str:
        return self.prompt_set if self.method is None else self.method

    @property
    def title(self) -> str:
        """The line of a table that it stands in."""
        return self.behind(self.label)


class Subject(Named, OnData):
    """A prompt set behind a defense on some pictures, with a seed."""

    seed: int

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,)

    @property
    def words(self) -> str:
        """All of it, but the split."""
        return f"{self.prompt_set} on {self.data} ({self.backbone}, defense {self.defense}, seed {self.seed})"


class Result(Accuracy, Subject, Condition):
    """One measured accuracy.

    n               pictures
    accuracy_8bit   of attacked pictures rounded to what a PNG can hold
    abstained       where the chain votes: the share without an answer
    scoring         `sigmoid` where the answer may be none of the labels
    attack          its parameters, None for untouched pictures
    fell_to         T3: attack -> pictures that fell to it
    seen_labels     how many of the `measured_labels` a learned prompt set was trained on
    selection       digest of the record that its settings were chosen by
    measured_on     digest of CLIP and pictures: lines that share it are compared picture by picture
    right           which pictures were right, four to a hexadecimal digit
    cost            image rows through the tower, `forward` and `backward`
    command         what measures it again
    pictures, correct   with --per-picture: names, and whether each was right
    """

    n: int
    accuracy_8bit: float
    abstained: float | None = None
    scoring: str | None = None
    attack: dict[str, JsonValue] | None
    fell_to: dict[str, int] | None = None
    seen_labels: int | None = None
    measured_labels: int | None = None
    selection: str | None = None
    measured_on: str | None = None
    right: str | None = None
    seconds: float
    cost: dict[str, int]
    command: str
    pictures: tuple[str, ...] = ()
    correct: tuple[bool, ...] = ()

    @property
    def averaged(self) -> int:
        """Draws behind each gradient of the attack; 0 where it has none."""
        draws = (self.attack or {}).get("draws", 0)
        return draws if isinstance(draws, int) else 0


class Mean(Accuracy, Named, OnData, Condition):
    """The mean of several seeds, and their standard deviation (n - 1)."""

    n: int
    seeds: tuple[int, ...]
    deviation: float


class Pair(Difference):
    """Accuracy of prompt set `a` less that of `b`."""

    a: str
    b: str

    @property
    def sets(self) -> str:
        """Which are compared, without their versions."""
        return f"{self.a.split('@')[0]} - {self.b.split('@')[0]}"

    @property
    def better(self) -> str:
        """Which of both is, in words."""
        return f"{'a' if self.low > 0 else 'b'} is better" if self.decided else "no difference"


class Paired(Pair, OnData, Condition):
    """On one data set; `seeds` are there where they are several."""

    n: int
    seeds: tuple[int, ...] = ()


class OverData(Condition):
    """What several data sets have in common, each counted the same; `n_each`: pictures of each."""

    data: tuple[str, ...]
    seeds: tuple[int, ...]
    n_each: tuple[int, ...]

    @property
    def data_name(self) -> str:
        return ", ".join(self.data)

    @property
    def n(self) -> int:
        return sum(self.n_each)


class MeanOverData(Accuracy, OverData, Named):
    """The mean over data sets."""


class PairedOverData(Pair, OverData):
    """The difference of two such means."""


class Missing(Line):
    data: str
    seeds: tuple[int, ...]


class LeftOut(OverData, Named):
    """A prompt set that has no mean, for want of the cells in `missing`."""

    missing: tuple[Missing, ...]


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
