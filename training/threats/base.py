"""What a threat level is: a threat set that bounds what the attacker may do, what the attacker knows, how
accuracy is measured against it, what that takes at most, and what of it belongs to a number's name.

`BallLevel` and `SearchLevel` are what levels have in common whose attacker stays in an Linf ball. A picture
that is wrong untouched counts as wrong at every level, also where an attack happens to put it right: a
deviation from the papers.
"""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from robustclip.attacks import MAX_QUERIES, MAX_STARTS, AnyAttack, Precision, Preset
from robustclip.errors import InvalidInput
from robustclip.measuring import measure
from robustclip.scores import LossName
from robustclip.threat import Linf, LinfRadius, radius_text
from robustclip.types import Cost, Progress, price
from training.threats import THREAT_LEVELS, known
from training.threats.judging import GRADIENT_DRAWS, AtLevel, Victim, batches, facts_of, score_of

MAX_STEPS, MAX_DRAWS = 1000, 1000

Bounds = TypeVar("Bounds")


class Effort(BaseModel):
    """How far attackers may go and what they take; each level reads what concerns it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    eps: tuple[LinfRadius, ...] = Field(default=(0.0,), min_length=1, description="radii of the balls")
    strength: Preset = Field(default="standard", description="of T3's ensemble: quick, standard or thorough")
    steps: int = Field(
        default=100,
        ge=1,
        le=MAX_STEPS,
        description="of T2's attack; other numbers on train:validation, to choose settings by (20), and "
        "behind dear defenses",
    )
    restarts: int = Field(
        default=1,
        ge=1,
        le=MAX_STARTS,
        description="random starts of T2's attack, a picture falls to any of them",
    )
    draws: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DRAWS,
        description="of a randomized defense, behind each gradient of T2 and each query of black-box; none: "
        "20 and 4",
    )
    queries: int = Field(default=1000, ge=1, le=MAX_QUERIES, description="of black-box, at most")
    search: Precision = Field(
        default="float32",
        description="precision in which T2 and T3 search, or bfloat16: faster on recent processors; float32 "
        "judges what is found",
    )
    surrogates: tuple[str, ...] = Field(
        default=(), description="what T0b attacks instead: efficientnet-lite0, or another backbone"
    )


@dataclass(frozen=True)
class ThreatSet(Generic[Bounds]):
    """What an attacker may make of a picture. `bounds` are in the terms of its level, such as a ball.

    The others name it: `text` in rows, `key` in the keys of cells, `words` on the command line.
    """

    bounds: Bounds
    text: str
    key: Mapping[str, object]
    words: tuple[str, ...] = ()


class Work(NamedTuple):
    """One measurement. `folder`: of this measurement alone, where a long one keeps what is done of it;
    `parts`: the levels that it consists of, as they were measured on the same pictures.
    """

    progress: Progress
    folder: Path
    parts: Mapping[str, AtLevel]


class Bill(NamedTuple):
    """Charged passes (forward + 2 backward) at most: those of one measurement, and those of attacked pictures
    that are `made` once for several measurements.

    `made_for`: what these must have in common beside the pictures, such as the digest of their prompts.
    """

    own: int
    made: int = 0
    made_for: str | None = None


class ThreatLevel(ABC, Generic[Bounds]):
    """An entry of the table.

    name            as rows, keys and options have it
    knows           a line of help: what the attacker knows and does
    takes           fields of `Effort` that it reads; another value than the default names its numbers
    draws           of a randomized defense in each question of the attacker, unless `Effort` says otherwise
    needs           fields of `Effort` that it can't do without, and that serve it alone
    parts           levels whose worst case it begins with
    reads_templates whether the words in `Pictures.templates` decide its numbers
    blind           the masking check that fires if it leaves less standing than attackers who know more
    """

    name: ClassVar[str]
    knows: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    draws: ClassVar[int] = GRADIENT_DRAWS
    needs: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()
    reads_templates: ClassVar[bool] = False
    blind: ClassVar[str | None] = None

    @abstractmethod
    def threat_sets(self, effort: Effort) -> Iterator[ThreatSet[Bounds]]:
        """Each is a condition of its own. Raises InvalidInput for what bounds no attack."""

    @abstractmethod
    def measure(self, victim: Victim, within: ThreatSet[Bounds], effort: Effort, work: Work) -> AtLevel:
        """Which pictures stand. Cost and seconds include what making attacked pictures took, whenever that
        was, and those of all `parts`.
        """

    @abstractmethod
    def bill(self, victim: Victim, within: ThreatSet[Bounds], effort: Effort) -> Bill:
        """Without its `parts`. Who is right untouched and who falls early is not known yet: `measure` can
        only take less.
        """

    def check(self, effort: Effort, *, measured: bool, reported: bool) -> None:
        """Raises InvalidInput for effort that makes no sense here: `measured`, this level is; `reported`, its
        numbers are, on pictures that choose no settings and without a defense.
        """

    def unusual(self, effort: Effort, *, randomized: bool) -> dict[str, Any]:
        """What it takes that is not its usual effort: named by every number that comes of it."""
        named: dict[str, Any] = {}
        for name in self.takes:
            value = getattr(effort, name)
            usual = self.draws if name == "draws" else Effort.model_fields[name].default
            if value not in (None, usual) and (randomized or name != "draws"):
                named[name] = value
        return named

    def named(self, effort: Effort) -> dict[str, JsonValue]:
        """What `effort` decides of the attack as rows have it (`AtLevel.attack`), beside what is unusual."""
        return {}

    def key(self, victim: Victim, effort: Effort) -> dict[str, object]:
        """What its numbers depend on, beside victim, threat set, batch and device."""
        return self.unusual(effort, randomized=victim.randomized)

    def words(self, effort: Effort, *, randomized: bool) -> list[str]:
        """The options of `robustclip evaluate` that ask for this effort."""
        taken = self.unusual(effort, randomized=randomized)
        return [word for name, value in taken.items() for word in (f"--{name}", str(value))]

    def draws_of(self, victim: Victim, effort: Effort) -> int:
        """In each question of the attacker: 1 where nothing is random."""
        asked = effort.draws if "draws" in self.takes else None
        return (asked or self.draws) if victim.randomized else 1


def judged(victim: Victim, versions: int = 3) -> int:
    """Charged passes that judge a victim on pictures untouched, attacked and rounded to 8 bits."""
    return price(victim.classifier, versions * len(victim.pictures.indices) * victim.jury.draws).charged


def threat_level(name: str) -> ThreatLevel[Any]:
    """The level of that name. Raises KeyError for one that is not in the table."""
    return pkgutil.resolve_name(THREAT_LEVELS[name])()


def measure_at(
    name: str, victim: Victim, within: ThreatSet[Any], effort: Effort, progress: Progress
) -> AtLevel:
    """Accuracy at a level with all its parts, nothing of which is kept but attacked pictures in the cache."""
    level = threat_level(name)
    parts = {part: measure_at(part, victim, within, effort, progress) for part in level.parts}
    with TemporaryDirectory() as folder:
        return level.measure(victim, within, effort, Work(progress, Path(folder), parts))


def _needs_nothing(name: str) -> str:
    if needs := threat_level(known(name)).needs:
        raise ValueError(f"{name} needs {', '.join(needs)}: ask robustclip evaluate")
    return name


PlainThreat: TypeAlias = Annotated[str, AfterValidator(_needs_nothing)]  # takes no more than a threat set


class BallLevel(ThreatLevel[Linf]):
    """A level whose attacker stays in an Linf ball."""

    def threat_sets(self, effort: Effort) -> Iterator[ThreatSet[Linf]]:
        return balls(effort)


def balls(effort: Effort) -> Iterator[ThreatSet[Linf]]:
    """The Linf ball of each radius. InvalidInput for a radius of 0."""
    for eps in effort.eps:
        if eps <= 0:
            raise InvalidInput(
                f"expected a radius above 0 for an attack, found {eps:g}.",
                field="--eps",
                help='Write it like "4/255", or ask for clean.',
            )
        text = radius_text(eps)
        yield ThreatSet(Linf(radius=eps), text, {"eps": eps}, ("--eps", text))


class SearchLevel(BallLevel):
    """An attack that raises a loss of the deployed chain, of a randomized one its mean over several draws."""

    loss: ClassVar[LossName]

    @abstractmethod
    def attack(self, victim: Victim, ball: Linf, effort: Effort) -> AnyAttack: ...

    def measure(self, victim: Victim, within: ThreatSet[Linf], effort: Effort, work: Work) -> AtLevel:
        attack, draws = self.attack(victim, within.bounds, effort), self.draws_of(victim, effort)
        measured = measure(
            victim.classifier,
            batches(victim, work.progress, self.name),
            attack=attack,
            score=score_of(
                self.loss, draws=draws if victim.randomized else None, search=self._search(effort)
            ),
            ball=within.bounds,
            jury=victim.jury,
        )
        return AtLevel(measured, facts_of(attack, score=self.loss, draws=draws))

    def bill(self, victim: Victim, within: ThreatSet[Linf], effort: Effort) -> Bill:
        rows = len(victim.pictures.indices) * self.draws_of(victim, effort)
        searched = self.attack(victim, within.bounds, effort).bill(rows)
        if self._search(effort) != "float32":  # what is close to the boundary is asked again in full
            searched = searched.plus(Cost(searched.forward))
        return Bill(judged(victim) + searched.through(victim.classifier.toll).charged)

    def _search(self, effort: Effort) -> Precision:
        return effort.search if "search" in self.takes else "float32"
