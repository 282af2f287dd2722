"""What an evaluation measures: prompt sets on backbones, behind defenses, on pictures, with seeds, all opened
before anything is computed.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from robustclip.defenses import parse_defenses
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import load_clip
from robustclip.models.scoring import scoring_for
from training.data.sampling import HELD_OUT, balanced_subset
from training.data.sources import Source
from training.measuring.evaluation.prompt_sets import AskedSet, load_prompts, of_seed
from training.measuring.evaluation.question import Question
from training.threats import THREAT_LEVELS
from training.threats.base import threat_level
from training.threats.judging import Pictures, Victim, victim_of

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
            pictures = Pictures(
                data,
                indices,
                seed,
                question.runs / "cache",
                question.batch,
                source.templates,
                question.scoring,
            )
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
