"""What `robustclip evaluate` is asked: prompt sets, pictures, threat levels, radii, defenses and seeds, which
multiply.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field

from robustclip.models.scoring import Scoring
from training.data.sources import Source
from training.measuring.schema.rows import Condition
from training.threats import Threat
from training.threats.base import Effort, ThreatSet, threat_level

NO_DEFENSE = "none"
DATA_TEMPLATE = "data-template"  # the prompt set that is the words of each data set
TEMPLATES_APART = "|"  # between templates whose text features are averaged
EVERY_SEED = "%"  # in the name of a prompt set: stands for the seed

Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]


class Question(Effort):
    """What is to be measured, with the effort of all attackers. The tuples multiply, but `surrogates`, which
    T0b attacks together.
    """

    backbones: tuple[str, ...] = Field(min_length=1)
    pretrained: str | None = None
    prompt_sets: tuple[str, ...] = Field(min_length=1)
    data: tuple[Source, ...] = Field(min_length=1)
    threats: tuple[Threat, ...] = Field(min_length=1)
    defenses: tuple[str, ...] = Field((NO_DEFENSE,), min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    scoring: Scoring = "softmax"
    limit: int = Field(0, ge=0)
    batch: int = Field(64, ge=1, le=4096)
    store: Path
    runs: Path
    device: str = "cpu"

    def conditions(self) -> Iterator[tuple[str, ThreatSet[Any]]]:
        """Threat levels with each of their threat sets. InvalidInput for what bounds no attack."""
        for threat in self.threats:
            for within in threat_level(threat).threat_sets(self):
                yield threat, within


def effort_of(line: Condition) -> dict[str, int]:
    """What the attack behind a line took, the most telling first: what the line names, else what is usual for
    the level.
    """
    level = threat_level(line.threat)
    usual = {name: Effort.model_fields[name].default for name in level.takes if name != "restarts"}
    numbers = {name: number for name, number in usual.items() if isinstance(number, int)}
    numbers |= {"draws": level.draws, "restarts": 1}
    return numbers | line.part(*numbers)
