"""Prompt sets x data x threat levels -> rows of numbers, each with what reproduces it, and paired differences.

It computes; `evaluate.py` reads options and prints.
"""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from prompts_store.store import SHIPPED, PromptStore
from robustclip.classifier import Defended, TorchImageEncoder, zero_shot
from robustclip.clip import Clip, load_clip
from robustclip.defenses import bind_chain, parse_defenses
from robustclip.errors import InvalidInput, UnknownPromptSet
from robustclip.measure import accuracy, mcnemar, paired_difference
from robustclip.prompts import Prompts
from robustclip.threat import LinfRadius, radius_text
from robustclip.types import Progress
from training.classes import Among, choose_classes
from training.data import LabelledImages
from training.levels import Level, Pictures, measure_level
from training.sampling import balanced_subset, open_split

NO_DEFENSE = "none"


class Question(BaseModel):
    """What is to be measured. The tuples multiply; `eps` does not concern clean pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    backbones: tuple[str, ...] = Field(min_length=1)
    pretrained: str | None = None
    prompt_sets: tuple[str, ...] = Field(min_length=1)
    data: tuple[Path, ...] = Field(min_length=1)
    split: str = "test"
    classes: Path | None = None
    among: Among = "all"
    threats: tuple[Level, ...] = Field(min_length=1)
    eps: tuple[LinfRadius, ...] = Field(min_length=1)
    defenses: tuple[str, ...] = Field((NO_DEFENSE,), min_length=1)
    limit: int = Field(0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)
    batch: int = Field(64, ge=1, le=4096)
    store: Path
    runs: Path
    device: str = "cpu"

    def conditions(self) -> Iterator[tuple[Level, float]]:
        """Threat levels with their radii, 0 for clean."""
        for level in self.threats:
            for eps in (0.0,) if level == "clean" else self.eps:
                yield level, eps

    def open(self, folder: Path) -> LabelledImages:
        """The split of one folder, only the asked classes of it."""
        data = open_split(folder, self.split)
        return data if self.classes is None else choose_classes(data, self.classes, self.among)


class Row(NamedTuple):
    """One number with its facts, as JSON; the folder and the pictures behind it, by name, and whether each was right."""

    facts: dict[str, Any]
    folder: Path
    pictures: tuple[str, ...]
    correct: Tensor

    @property
    def condition(self) -> tuple[str, ...]:
        """What two rows must share to be compared picture by picture."""
        return (str(self.folder), *(str(self.facts[name]) for name in ("backbone", "split", "defense", "threat", "eps")))


def answer(question: Question, *, progress: Progress) -> Iterator[Row]:
    """The rows, as they are measured. Raises InvalidInput and its siblings before the first one where it can."""
    for text in question.defenses:
        parse_defenses(text, field="--defense")
    if any(level != "clean" and eps <= 0 for level, eps in question.conditions()):
        raise InvalidInput("expected a radius above 0 for an attack, found 0.", field="--eps", help='Write it like "4/255", or ask for clean.')
    for folder in question.data:
        question.open(folder)  # a folder that can't be read is refused now, not after hours on the one before
    for backbone, folder in itertools.product(question.backbones, question.data):
        clip = load_clip(backbone, question.pretrained, device=question.device)
        data = question.open(folder)
        indices = balanced_subset(data, question.limit, question.seed)
        pictures = Pictures(data, indices, question.seed, question.runs / "cache", question.batch)
        names = tuple(data.names[index] for index in indices.tolist())
        sets = [load_prompts(text, clip, data.labels, question.store) for text in question.prompt_sets]
        for (prompt_set, prompts), defense in itertools.product(sets, question.defenses):
            encoder = TorchImageEncoder(clip)
            chain = bind_chain(parse_defenses(defense, field="--defense"), encoder)
            classifier = Defended(zero_shot(clip, prompts, data.labels, encoder=encoder), chain)
            for level, eps in question.conditions():

                def named(done: int, total: int, what: str, *, about: str = f"{folder.name} {prompt_set} {radius_text(eps)}") -> None:
                    progress(done, total, f"{what} {about}")

                found = measure_level(level, eps, clip, classifier, pictures, randomized=chain.randomized, progress=named)
                measured = found.measured
                share = accuracy(measured.correct)
                facts = {
                    "backbone": backbone,
                    "prompt_set": prompt_set,
                    "data": folder.resolve().name,
                    "split": question.split,
                    **_restriction(question),
                    "defense": defense,
                    "threat": level,
                    "eps": radius_text(eps),
                    "n": len(indices),
                    "accuracy": share.value,
                    "low": share.low,
                    "high": share.high,
                    "accuracy_8bit": accuracy(measured.correct_8bit).value,
                    "attack": found.attack,
                    "seed": question.seed,
                    "seconds": round(measured.seconds, 3),
                    "cost": measured.cost._asdict(),
                    "command": _command(question, backbone, prompt_set, folder, defense, level, eps),
                }
                yield Row(facts, folder.resolve(), names, measured.correct)


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every two prompt sets under the same condition: accuracy(a) - accuracy(b) on the same pictures, `a` the one that was named later."""
    paired: list[dict[str, Any]] = []
    for second, first in itertools.combinations(rows, 2):
        if first.condition == second.condition:
            difference = paired_difference(first.correct, second.correct)
            shared = {name: first.facts[name] for name in ("backbone", "data", "split", "defense", "threat", "eps", "n")}
            sets = {"a": first.facts["prompt_set"], "b": second.facts["prompt_set"]}
            interval = {"difference": difference.value, "low": difference.low, "high": difference.high}
            paired.append({**shared, **sets, **interval, "mcnemar": mcnemar(first.correct, second.correct)})
    return paired


def load_prompts(text: str, clip: Clip, labels: tuple[str, ...], store: Path) -> tuple[str, Prompts]:
    """What a prompt set option means and its pinned name: a template with `{}`, or a set of the store, or one that is shipped."""
    if "{" in text or "}" in text:
        return text, Prompts(templates=(text,))
    stores = [PromptStore(root, read_only=True) for root in (store, SHIPPED)]
    for place in stores:
        try:
            found = place.load(text, clip)
            break
        except UnknownPromptSet:
            continue
    else:
        known = sorted({name for place in stores for name in place.names(clip.fingerprint)})
        raise UnknownPromptSet(f"there is no prompt set {text!r} for {clip.arch}.", field="--prompt-set", help=f"Known: {', '.join(known)}.")
    if found.manifest.class_specific and found.manifest.labels != labels:
        raise InvalidInput(f"{found.ref} has a context for each of its own labels, which are not those of the data.", field="--prompt-set")
    return str(found.ref), found.prompts


def _restriction(question: Question) -> dict[str, str]:
    """Which classes were measured, where not all were."""
    return {} if question.classes is None else {"classes": question.classes.name, "among": question.among}


def _command(question: Question, backbone: str, prompt_set: str, folder: Path, defense: str, level: Level, eps: float) -> str:
    """What measures this one row again: every choice spelled out, the prompt set by its version."""
    words = ["robustclip", "evaluate", "--backbone", backbone]
    words += ["--pretrained", question.pretrained] if question.pretrained else []
    words += ["--prompt-set", prompt_set, "--data", str(folder), "--split", question.split, "--threat", level]
    words += [] if question.classes is None else ["--classes", str(question.classes), "--among", question.among]
    words += [] if level == "clean" else ["--eps", radius_text(eps)]
    words += [] if defense == NO_DEFENSE else ["--defense", defense]
    words += ["--limit", str(question.limit), "--seed", str(question.seed), "--batch", str(question.batch)]
    words += ["--store", str(question.store), "--device", question.device, "--json"]
    return shlex.join(words)
