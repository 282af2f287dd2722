"""The lines of `robustclip evaluate` and `robustclip suite`: a measured accuracy, and what is computed from
several of them.
"""

from fractions import Fraction

from pydantic import JsonValue

from training.measuring.schema.base import Accuracy, Difference, Line, OnData, Pictures
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
