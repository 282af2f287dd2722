"""How settings were chosen: candidates, the pictures they were judged on, the numbers, the winner.
`robustclip select` writes such a record, `train` and `suite` take settings from it, the published set carries
its digest.

No test picture may decide. A record that names another split than `train:validation`, the tenth that every
run holds out of its training pictures, is refused wherever it is read, and so is one whose winner is not the
candidate that its own numbers name.
"""

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from prompts_store.manifest import ClipIdentity
from robustclip.digests import json_digest
from robustclip.errors import InvalidInput, invalid_input
from robustclip.models import Clip
from training.data.sampling import HELD_OUT
from training.threats import THREAT_LEVELS, Threat
from training.threats.base import threat_level

HARMONIC = "harmonic"
CARRIED = "selection"  # the name under which a manifest's `objective` holds what is carried


def _held_out(split: str) -> str:
    if split != HELD_OUT:
        raise ValueError(
            f"settings are chosen on {HELD_OUT}, which is held out of training pictures, never on a test or "
            f"validation file"
        )
    return split


def _on_held_out(command: str) -> str:
    words = shlex.split(command)
    for option, value in itertools.pairwise(words):
        if option == "--split":
            _held_out(value)
    return command


def _scores(by: str) -> str:
    known = (HARMONIC, *(name for name in THREAT_LEVELS if name != "clean" and not threat_level(name).needs))
    if by not in known:
        raise ValueError(f"expected one of {', '.join(known)}")
    return by


By: TypeAlias = Annotated[str, AfterValidator(_scores)]
HeldOut: TypeAlias = Annotated[str, AfterValidator(_held_out)]
Command: TypeAlias = Annotated[str, AfterValidator(_on_held_out)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class JudgedOn(_Record):
    """Pictures that candidates were judged on; `digest` is over labels, targets and bytes."""

    data: str
    split: HeldOut
    classes: str | None = None
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    n: int = Field(ge=1)


class Number(_Record):
    """One measured accuracy of a candidate, with the command that measures it again."""

    data: str
    split: HeldOut
    seed: int
    threat: Threat
    eps: str
    n: int = Field(ge=1)
    accuracy: float = Field(ge=0, le=1)
    low: float
    high: float
    command: Command


class Ahead(_Record):
    """By how much a candidate's score is above that of the first, with its bootstrap interval over pictures
    and seeds.
    """

    value: float
    low: float
    high: float


class CandidateSettings(_Record):
    """`settings`: what sets it apart; `objective`: all its parameters; `why`: what made one of its runs fail,
    which rules it out whatever the others were worth.
    """

    settings: dict[str, JsonValue]
    objective: dict[str, JsonValue]
    numbers: tuple[Number, ...] = ()
    ahead: Ahead | None = None
    why: str | None = None


class Carried(_Record):
    """What a published set says about the selection behind it; `clip`: for which CLIP it was made, None in
    sets that don't say.
    """

    digest: str
    clip: ClipIdentity | None = None
    over: tuple[str, ...]
    judged_on: tuple[JudgedOn, ...] = Field(min_length=1)


class Selection(_Record):
    """The whole record.

    over        names of the parameters that were chosen: the others are as they were given
    by          the score: accuracy at a threat level, or the harmonic mean of T2's and clean accuracy; mean
                over seeds, then data sets
    keep_first  the first candidate stays unless the best one is ahead of it by an interval above 0
    title, says for the results page, written by hand: they decide nothing, and no digest knows them
    """

    title: str = ""
    says: str = ""
    format: Literal[1] = 1
    clip: ClipIdentity
    over: tuple[str, ...] = Field(min_length=1)
    by: By
    keep_first: bool
    shots: int = Field(ge=0)
    seeds: tuple[int, ...] = Field(min_length=1)
    max_passes: int = Field(ge=0)
    steps: int = Field(ge=1)
    judged_on: tuple[JudgedOn, ...] = Field(min_length=1)
    candidates: tuple[CandidateSettings, ...] = Field(min_length=1)
    chosen: dict[str, JsonValue]
    command: Command

    @model_validator(mode="after")
    def _follows(self) -> Self:
        winner = best(self.candidates, self.by, keep_first=self.keep_first)
        if winner is None or winner.settings != self.chosen:
            raise ValueError("`chosen` is not the candidate that the numbers name")
        return self

    @property
    def objective(self) -> dict[str, JsonValue]:
        """All parameters of the winner."""
        return next(candidate.objective for candidate in self.candidates if candidate.settings == self.chosen)

    def carried(self) -> Carried:
        facts = self.model_dump(mode="json", exclude={"title", "says"})
        return Carried(
            digest=json_digest(facts)[:12], clip=self.clip, over=self.over, judged_on=self.judged_on
        )

    def borrowed_by(self, clip: Clip) -> str | None:
        """What is to be said of settings that were chosen for another CLIP than this one: nothing forbids
        them, nothing vouches for them.
        """
        if self.clip.fingerprint == clip.fingerprint:
            return None
        return (
            f"settings were chosen for {self.clip.arch} ({self.clip.fingerprint[:8]}), not for "
            f"{clip.arch} ({clip.fingerprint[:8]})"
        )


def best(candidates: Sequence[CandidateSettings], by: By, *, keep_first: bool) -> CandidateSettings | None:
    """The highest score, the earlier of equals; None if all failed."""
    standing = [candidate for candidate in candidates if candidate.why is None and candidate.numbers]
    if not standing:
        return None
    winner = max(standing, key=lambda candidate: score(candidate.numbers, by))
    if keep_first and candidates[0] in standing and not (winner.ahead and winner.ahead.low > 0):
        return candidates[0]
    return winner


def score(numbers: Sequence[Number], by: By) -> float:
    """Mean over data sets of the score of the means over seeds."""
    names = list(dict.fromkeys(number.data for number in numbers))
    return sum(_of_data([number for number in numbers if number.data == name], by) for name in names) / len(
        names
    )


def level_of(by: By) -> str:
    """The threat level that candidates are judged under, beside clean."""
    return "T2" if by == HARMONIC else by


def combined(clean: Any, attacked: Any, by: By) -> Any:
    """The attacked one of two accuracies (or tensors of them), or their harmonic mean, 0 where both are 0."""
    return 2 * clean * attacked / (clean + attacked + 1e-12) if by == HARMONIC else attacked


def load_selection(path: Path) -> Selection:
    """InvalidInput names the file and the field at fault."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Selection.model_validate(values)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InvalidInput(
            f"can't be read as the record of a selection: {error}",
            field=str(path),
            help="robustclip select writes one.",
        ) from error
    except ValidationError as error:
        raise invalid_input(error, values, field=str(path)) from error  # pyright: ignore[reportPossiblyUnboundVariable]


def check_carried(objective: Mapping[str, JsonValue], *, ref: str) -> Carried | None:
    """What a published set carries, if anything; InvalidInput for a set whose settings were chosen on other
    pictures than held-out ones.
    """
    values = objective.get(CARRIED)
    if values is None:
        return None
    try:
        return Carried.model_validate(values)
    except ValidationError as error:
        raise invalid_input(error, values, field=f"{ref}/objective/{CARRIED}") from error


def _of_data(numbers: Sequence[Number], by: By) -> float:
    clean, attacked = (
        _mean([number.accuracy for number in numbers if number.threat == threat])
        for threat in ("clean", level_of(by))
    )
    return combined(clean, attacked, by)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
