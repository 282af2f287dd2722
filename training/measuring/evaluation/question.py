"""What `robustclip evaluate` is asked (prompt sets, pictures, threat levels, radii, defenses and seeds, which
multiply), and the subjects of that question, all opened before anything is computed.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

from pydantic import Field

from prompts_store.store import SHIPPED, PromptStore
from robustclip.defenses import parse_defenses
from robustclip.errors import InvalidInput, UnknownPromptSet
from robustclip.models import Clip, Prompts, Scoring, TorchImageEncoder, load_clip, meanings, scoring_for
from training.data.sampling import HELD_OUT, balanced_subset
from training.data.sources import Source
from training.learning.tuning.selection import check_carried
from training.measuring.schema.evaluation import Condition
from training.threats import THREAT_LEVELS, Threat
from training.threats.base import Effort, ThreatSet, threat_level
from training.threats.judging import Pictures, Victim, victim_of

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


class AskedSet(NamedTuple):
    """A prompt set by its pinned name, or the words that were asked for.

    learned_on  the labels it was trained on; none if it learned nothing
    selection   the digest of the record by which its settings were chosen, if they were
    """

    name: str
    prompts: Prompts
    learned_on: tuple[str, ...] = ()
    selection: str | None = None


def load_prompts(text: str, clip: Clip, labels: tuple[str, ...], store: Path) -> AskedSet:
    """What a prompt set option means: templates with `{}`, | between them, or a set of the store, or a
    shipped one.

    A set whose settings were chosen on other pictures than held-out ones is refused
    (`selection.check_carried`).
    """
    if "{" in text or "}" in text:
        return AskedSet(text, Prompts(templates=tuple(text.split(TEMPLATES_APART))))
    stores = [PromptStore(root, read_only=True) for root in (store, SHIPPED)]
    for place in stores:
        try:
            found = place.load(text, clip)
            break
        except UnknownPromptSet:
            continue
    else:
        known = sorted({name for place in stores for name in place.names(clip.fingerprint)})
        raise UnknownPromptSet(
            f"there is no prompt set {text!r} for {clip.arch}.",
            field="--prompt-set",
            help=f"Known: {', '.join(known)}.",
        )
    known = found.manifest.labels
    if found.manifest.class_specific and meanings(labels, known) != [[row] for row in range(len(known))]:
        raise InvalidInput(
            f"{found.ref} has a context for each of its own labels, which are not those of the data.",
            field="--prompt-set",
        )
    carried = check_carried(found.manifest.objective, ref=str(found.ref))
    return AskedSet(
        str(found.ref), found.prompts, found.manifest.labels, None if carried is None else carried.digest
    )


def of_seed(asked: str, source: Source, seed: int) -> str:
    """The one prompt set that is meant on a data set, for a seed."""
    if asked == DATA_TEMPLATE:
        return TEMPLATES_APART.join(source.templates)
    return asked if "{" in asked else asked.replace(EVERY_SEED, str(seed))


SUBSET_SEED = 0  # the same pictures for every seed, so that seeds can be compared on them


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject(Victim):
    """A prompt set on a backbone, behind a defense, on some pictures, with a seed. `asked`: how the prompt
    set was asked for.
    """

    backbone: str
    source: Source
    asked: str
    found: AskedSet
    defense: str

    @property
    def prompt_set(self) -> str:
        return self.found.name


def open_subjects(question: Question, known: Mapping[str, AskedSet] | None = None) -> list[Subject]:
    """Everything that is to be measured, opened. Raises InvalidInput and its siblings for whatever can't be,
    before anything is computed.

    `known` prompt sets are taken as they are, whatever the store holds under their names: those that are only
    to be learned.
    """
    chains = [(text, parse_defenses(text, field="--defense")) for text in question.defenses]
    list(question.conditions())
    _check_efforts(question, defended=all(chain for _, chain in chains))
    opened = [source.open() for source in question.data]
    subjects: list[Subject] = []
    for backbone, (source, data) in itertools.product(
        question.backbones, zip(question.data, opened, strict=True)
    ):
        clip = load_clip(backbone, question.pretrained, device=question.device)
        scoring_for(clip, question.scoring, field="--scoring")
        indices = balanced_subset(data, question.limit, SUBSET_SEED)
        encoder = TorchImageEncoder(clip)
        for asked, (defense, chain), seed in itertools.product(question.prompt_sets, chains, question.seeds):
            name = of_seed(asked, source, seed)
            found = (known or {}).get(name) or load_prompts(name, clip, data.labels, question.store)
            cache, batch = question.runs / "cache", question.batch
            pictures = Pictures(data, indices, seed, cache, batch, source.templates, question.scoring)
            victim = victim_of(clip, found.prompts, pictures, chain, encoder=encoder)
            subjects.append(
                Subject(
                    **vars(victim),
                    backbone=backbone,
                    source=source,
                    asked=asked,
                    found=found,
                    defense=defense,
                )
            )
    return subjects


def _check_efforts(question: Question, *, defended: bool) -> None:
    """Each level of the table on what is asked of it, or of others."""
    choosing = all(source.split == HELD_OUT for source in question.data)
    for name in THREAT_LEVELS:
        threat_level(name).check(
            question, measured=name in question.threats, reported=not (choosing or defended)
        )
