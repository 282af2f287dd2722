"""The JSON files beside the results page: what one command measured, with a title and what it says.

A line of `robustclip certified` stands here too: a prompt set under a smoothed rule, on all its pictures.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from robustclip.errors import InvalidInput, invalid_input
from training.measuring.schema.base import Difference, Interval, Line, OnData
from training.measuring.schema.evaluation import Evaluation, Illusion


class Share(Interval):
    """Of how many pictures something is true."""

    count: int
    share: float


class Within(Share):
    """Of how many the certificate is right and reaches this L2 radius; `linf`: the radius that this implies,
    in words.
    """

    l2: float
    linf: str


class Attacks(Line):
    """What came of attacks at `factor` of the certified radius: how many fell, and how many had no answer; no
    interval where nothing was attacked.
    """

    norm: Literal["l2", "linf"]
    factor: float
    n: int
    fell: int
    no_answer: int
    low: float | None = None
    high: float | None = None


class Refuted(Line):
    """A picture whose certificate an attack showed to be wrong, with the certificate and the attack."""

    picture: str
    certificate: dict[str, JsonValue]
    attempt: dict[str, JsonValue]


class Direct(Line):
    """For how many pictures votes were counted without kept embeddings, and for how many they were the
    same.
    """

    n: int
    same: int


class Certified(OnData):
    """The whole line. `choosing` votes choose the label, `votes` others count, `ceiling_l2` is the radius of
    a decision that has all of them.
    """

    prompt_set: str
    denoise: str | None
    sigma: float
    choosing: int
    votes: int
    alpha: float
    seed: int
    n: int
    ceiling_l2: float
    right: Share
    abstained: Share
    certified: Share
    within: tuple[Within, ...]
    attacks: tuple[Attacks, ...] = ()
    refuted: tuple[Refuted, ...] = ()
    direct: Direct | None = None
    exploratory: bool
    cost: dict[str, int]
    command: str
    pictures: tuple[dict[str, JsonValue], ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the certificates: none was refuted, and both ways of counting votes
        agree.
        """
        return not self.refuted and (self.direct is None or self.direct.same == self.direct.n)


class Method(Line):
    """What a method of a table is: its objective, the settings that are not the objective's own defaults, and
    which of them the record `selection` chose.
    """

    kind: str
    settings: dict[str, str]
    chosen: tuple[str, ...]
    selection: str | None


class Made(BaseModel):
    """What a training left: the pinned prompt set, or why there is none; `charged` image passes and text
    passes, preparing included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    ref: str | None
    why: str | None = None
    epochs: int = 0
    charged: int = 0
    text_passes: int = 0
    seconds: float = 0.0


class Training(Line, Made):
    """What a method of a table left and took; `run`: a digest of all that it depends on."""

    method: str
    data: str
    seed: int
    run: str | None = None


class Gap(Line):
    """What a table lacks, and why; `pending`: nothing hinders it, it was only not done yet."""

    method: str
    data: str
    seed: int
    why: str
    pending: bool = False


class TableFile(Evaluation):
    """A table that `robustclip suite` wrote, or what `robustclip evaluate` printed with `title` and `says`
    added by hand.

    `checks_made`: how many masking checks there were, where `checks` has only those that fired.
    """

    title: str
    says: str
    command: str | None = None
    max_passes: int = 0
    methods: dict[str, Method] = Field(default={})
    defenses: dict[str, str] = Field(default={})
    illusions: tuple[Illusion, ...] = ()
    checks_made: int | None = None
    trainings: tuple[Training, ...] = ()
    missing: tuple[Gap, ...] = ()


class CertifiedFile(Line):
    """What `robustclip certified` printed."""

    kind: Literal["certified"]
    title: str
    says: str
    results: tuple[Certified, ...]


class _Selected(BaseModel):
    """A part of a selection's record, as far as the page reads it: `training.learning.tuning.selection` has
    it whole, and refuses what does not belong there.
    """

    model_config = ConfigDict(frozen=True)


class JudgedOn(_Selected):
    data: str
    n: int


class Number(_Selected):
    data: str
    threat: str
    eps: str
    accuracy: float


class Ahead(_Selected):
    value: float
    low: float
    high: float

    @property
    def difference(self) -> Difference:
        return Difference(difference=self.value, low=self.low, high=self.high, mcnemar=None)


class Candidate(_Selected):
    """`why`: what made it fail, None where nothing did."""

    settings: dict[str, JsonValue]
    numbers: tuple[Number, ...]
    ahead: Ahead | None
    why: str | None


class SelectionFile(_Selected):
    """The record of `robustclip select`."""

    title: str
    says: str
    shots: int
    seeds: tuple[int, ...]
    max_passes: int
    steps: int
    judged_on: tuple[JudgedOn, ...]
    candidates: tuple[Candidate, ...]
    chosen: dict[str, JsonValue]
    command: str

    @property
    def level(self) -> str:
        """The threat level that candidates were judged under, beside clean."""
        threats = (number.threat for candidate in self.candidates for number in candidate.numbers)
        return next((threat for threat in threats if threat != "clean"), "T2")


ResultsFile: TypeAlias = TableFile | CertifiedFile | SelectionFile


def read_results(path: Path) -> ResultsFile:
    """InvalidInput names the file, and the row and the field at fault."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"can't be read as results: {error}", field=str(path)) from error
    return results_of(content, field=str(path))


def results_of(content: Any, *, field: str) -> ResultsFile:
    """The same of what a file holds."""
    keys: dict[str, Any] = content if isinstance(content, dict) else {}
    kind: type[ResultsFile] = (
        CertifiedFile
        if keys.get("kind") == "certified"
        else SelectionFile
        if "candidates" in keys
        else TableFile
    )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise invalid_input(error, content, field=field) from error
