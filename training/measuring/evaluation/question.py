"""What `robustclip evaluate` is asked: prompt sets, pictures, threat levels, radii, defenses and seeds, which
multiply.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from robustclip.attacks.cascade import Precision
from robustclip.attacks.ensemble import Preset
from robustclip.attacks.pgd import MAX_STARTS
from robustclip.attacks.square import MAX_QUERIES
from robustclip.threat import LinfRadius
from training.data.sources import Source
from training.measuring.schema.rows import Condition
from training.threats.defended import QUERIES, QUERY_DRAWS
from training.threats.judging import GRADIENT_DRAWS
from training.threats.levels import T2_STEPS, Level

NO_DEFENSE = "none"
DATA_TEMPLATE = "data-template"  # the prompt set that is the words of each data set
TEMPLATES_APART = "|"  # between templates whose text features are averaged
EVERY_SEED = "%"  # in the name of a prompt set: stands for the seed

Threat: TypeAlias = Level | Literal["T0b", "static", "black-box"]
THREATS: tuple[Threat, ...] = ("clean", "T0", "T0b", "T1", "static", "T2", "black-box", "T3")
MAX_STEPS, MAX_DRAWS = 1000, 1000

Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]


class Question(BaseModel):
    """What is to be measured. The tuples multiply; `eps` does not concern clean pictures.

    `surrogates` are T0b's, `strength` is T3's, `steps` and `restarts` are T2's, `queries` black-box's;
    `draws` of a randomized defense are behind each gradient of T2 and each query of black-box, None: as many
    as the level has. `search` is the precision in which T2 and T3 look for what float32 then judges.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    backbones: tuple[str, ...] = Field(min_length=1)
    pretrained: str | None = None
    prompt_sets: tuple[str, ...] = Field(min_length=1)
    data: tuple[Source, ...] = Field(min_length=1)
    threats: tuple[Threat, ...] = Field(min_length=1)
    eps: tuple[LinfRadius, ...] = Field(min_length=1)
    defenses: tuple[str, ...] = Field((NO_DEFENSE,), min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    strength: Preset = "standard"
    steps: int = Field(T2_STEPS, ge=1, le=MAX_STEPS)
    restarts: int = Field(1, ge=1, le=MAX_STARTS)
    draws: int | None = Field(None, ge=1, le=MAX_DRAWS)
    queries: int = Field(QUERIES, ge=1, le=MAX_QUERIES)
    search: Precision = "float32"
    surrogates: tuple[str, ...] = ()
    limit: int = Field(0, ge=0)
    batch: int = Field(64, ge=1, le=4096)
    store: Path
    runs: Path
    device: str = "cpu"

    def conditions(self) -> Iterator[tuple[Threat, float]]:
        """Threat levels with their radii, 0 for clean."""
        for threat in self.threats:
            for eps in (0.0,) if threat == "clean" else self.eps:
                yield threat, eps

    def draws_at(self, threat: Threat) -> int:
        """Of a randomized defense, in each question that the attacker asks it."""
        return self.draws if self.draws is not None and threat in ("T2", "black-box") else _own_draws(threat)

    def unusual(self, threat: Threat, *, randomized: bool) -> dict[str, int | str]:
        """What the attacker takes that is not the level's own, by the names of the fields: it belongs to
        every number that comes of it.
        """
        usual = {"T2": {"steps": T2_STEPS}, "black-box": {"queries": QUERIES}}.get(threat, {})
        taken: dict[str, int | str] = {
            name: getattr(self, name) for name, number in usual.items() if getattr(self, name) != number
        }
        if threat in ("T2", "T3"):
            taken |= {"restarts": self.restarts} if self.restarts != 1 else {}
            taken |= {"search": self.search} if self.search != "float32" else {}
        if randomized and self.draws_at(threat) != _own_draws(threat):
            taken["draws"] = self.draws_at(threat)
        return taken


def effort_of(line: Condition) -> dict[str, int]:
    """What the attack behind a line took, the most telling first: what the line names (`Question.unusual`),
    else the level's own.
    """
    numbers = {"T2": {"steps": T2_STEPS}, "black-box": {"queries": QUERIES}}.get(line.threat, {})
    numbers |= {"draws": _own_draws(line.threat), "restarts": 1}
    return numbers | line.part(*numbers)


def _own_draws(threat: str) -> int:
    return QUERY_DRAWS if threat == "black-box" else GRADIENT_DRAWS
