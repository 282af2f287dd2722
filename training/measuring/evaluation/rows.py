"""Prompt sets x data x threat levels x seeds -> rows of numbers, each with what reproduces it.

It computes; `command.py` reads options and prints, `comparison.py` and `checks.py` say what follows from the
rows.
"""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from robustclip.certificates.vote import smoothing_of
from robustclip.defenses import bind_chain, network_digests, parse_defenses
from robustclip.defenses.smoothing import Smoothing
from robustclip.digests import json_digest
from robustclip.errors import InvalidInput
from robustclip.files import claimed
from robustclip.measuring import accuracy
from robustclip.models.classifier import Defended, TorchImageEncoder, zero_shot
from robustclip.models.clip import Clip, load_clip
from robustclip.models.prompts import HANDCRAFTED_TEMPLATE, Prompts
from robustclip.threat import radius_text
from robustclip.types import Progress
from training.data.labelled import LabelledImages
from training.data.sampling import HELD_OUT, balanced_subset
from training.data.sources import Source
from training.measuring.evaluation.cells import (
    cell_path,
    forget,
    forget_parts,
    keep,
    packed,
    parts_of,
    recall,
)
from training.measuring.evaluation.prompt_sets import AskedSet, load_prompts, of_seed
from training.measuring.evaluation.question import NO_DEFENSE, Question, Threat
from training.measuring.schema.rows import Result
from training.threats.defended import measure_black_box, measure_static
from training.threats.judging import AtLevel, Pictures, jury_of
from training.threats.levels import T2_STEPS, WITHIN_T3, Level, measure_level
from training.threats.surrogates import measure_transfer, surrogate_fingerprint

SUBSET_SEED = 0  # the same pictures for every seed, so that seeds can be compared on them


@dataclass(frozen=True, eq=False)
class Subject:
    """A prompt set on a backbone, behind a defense, on some pictures, with a seed. `asked`: how the prompt
    set was asked for.
    """

    backbone: str
    clip: Clip
    source: Source
    pictures: Pictures
    asked: str
    found: AskedSet
    defense: str
    classifier: Defended

    @property
    def prompt_set(self) -> str:
        return self.found.name

    @property
    def prompts(self) -> Prompts:
        return self.found.prompts

    @property
    def randomized(self) -> bool:
        return self.classifier.defense.randomized

    @property
    def rule(self) -> Smoothing | None:
        """The vote that would be served."""
        return smoothing_of(parse_defenses(self.defense))


class Row(NamedTuple):
    """One number; how its prompt set was asked for; the pictures behind it, by folder and name; whether each
    was right.
    """

    result: Result
    asked: str
    folder: Path
    pictures: tuple[str, ...]
    correct: Tensor


def open_subjects(question: Question, known: Mapping[str, AskedSet] | None = None) -> list[Subject]:
    """Everything that is to be measured, opened. Raises InvalidInput and its siblings for whatever can't be,
    before anything is computed.

    `known` prompt sets are taken as they are, whatever the store holds under their names: those that are only
    to be learned.
    """
    for text in question.defenses:
        parse_defenses(text, field="--defense")
    if any(threat != "clean" and eps <= 0 for threat, eps in question.conditions()):
        raise InvalidInput(
            "expected a radius above 0 for an attack, found 0.",
            field="--eps",
            help='Write it like "4/255", or ask for clean.',
        )
    if ("T0b" in question.threats) != bool(question.surrogates):
        raise InvalidInput(
            "T0b needs a surrogate to attack, and a surrogate serves T0b alone.",
            field="--surrogate",
            help="Name both or neither.",
        )
    _refuse_weak_attacks(question)
    opened = [source.open() for source in question.data]
    subjects: list[Subject] = []
    for backbone, (source, data) in itertools.product(
        question.backbones, zip(question.data, opened, strict=True)
    ):
        clip = load_clip(backbone, question.pretrained, device=question.device)
        indices = balanced_subset(data, question.limit, SUBSET_SEED)
        encoder = TorchImageEncoder(clip)
        for asked, defense, seed in itertools.product(
            question.prompt_sets, question.defenses, question.seeds
        ):
            name = of_seed(asked, source, seed)
            found = (
                known[name]
                if known and name in known
                else load_prompts(name, clip, data.labels, question.store)
            )
            classifier = Defended(
                zero_shot(clip, found.prompts, data.labels, encoder=encoder),
                bind_chain(parse_defenses(defense, field="--defense"), encoder),
            )
            pictures = Pictures(
                data, indices, seed, question.runs / "cache", question.batch, source.templates
            )
            subjects.append(Subject(backbone, clip, source, pictures, asked, found, defense, classifier))
    return subjects


def answer(
    question: Question,
    subjects: Sequence[Subject],
    *,
    progress: Progress,
    fresh: bool = False,
    only_kept: bool = False,
    wait: bool = True,
) -> Iterator[Row]:
    """The rows, as they are measured or, unless `fresh`, recalled from an earlier run; `only_kept` leaves out
    what was not measured yet.

    A cell that another process is at is waited for, or left out unless `wait`.
    """
    if fresh:
        for subject, (threat, eps) in itertools.product(subjects, question.conditions()):
            for part in (threat, *(WITHIN_T3 if threat == "T3" else ())):
                forget(cell_of(question, subject, part, eps)[0])
    for subject, (threat, eps) in itertools.product(subjects, question.conditions()):
        if only_kept and not cell_of(question, subject, threat, eps)[0].exists():
            continue

        def named(
            done: int,
            total: int,
            what: str,
            *,
            about: str = f"{subject.source.name} {subject.prompt_set} {radius_text(eps)}",
        ) -> None:
            progress(done, total, f"{what} {about}")

        found = _measured(question, subject, threat, eps, named, wait=wait)
        if found is None:
            continue
        names = tuple(subject.pictures.data.names[index] for index in subject.pictures.indices.tolist())
        yield Row(
            _result(question, subject, threat, eps, found),
            subject.asked,
            subject.source.folder.resolve(),
            names,
            found.measured.correct,
        )


def measured_on(clip: Clip, data: LabelledImages, indices: Tensor) -> str:
    """A digest of the pictures and the CLIP: rows that share it can be compared picture by picture."""
    return json_digest(
        {"clip": clip.fingerprint, "data": data.digest, "split": data.split, "indices": indices.tolist()}
    )[:16]


def cell_of(
    question: Question, subject: Subject, threat: Threat, eps: float
) -> tuple[Path, dict[str, object]]:
    """Where the answer about a subject under a condition is kept, and all that it depends on."""
    pictures = subject.pictures
    key: dict[str, object] = {
        "clip": subject.clip.fingerprint,
        "data": pictures.data.digest,
        "split": pictures.data.split,
        "indices": pictures.indices.tolist(),
        "prompts": subject.prompts.digest(),
        "defense": subject.defense,
        **({"networks": networks} if (networks := network_digests(parse_defenses(subject.defense))) else {}),
        **({} if subject.rule is None else {"judged_by": "votes"}),
        "threat": threat,
        "eps": eps,
        "seed": pictures.seed,
        "batch": pictures.batch,
        "device": question.device,
        **({"templates": list(pictures.templates)} if threat in ("T0b", "T1", "T3") else {}),
        **({"strength": question.strength} if threat == "T3" else {}),
        **question.unusual(threat, randomized=subject.randomized),
        **(
            {
                "surrogates": {
                    name: surrogate_fingerprint(name, question.device) for name in question.surrogates
                }
            }
            if threat == "T0b"
            else {}
        ),
    }
    return cell_path(question.runs / "evaluate", key), key


def _refuse_weak_attacks(question: Question) -> None:
    """Fewer steps than T2's, or fewer draws, flatter a prompt set. A defense may be too dear for all of them:
    its rows say what they had.
    """
    choosing = all(source.split == HELD_OUT for source in question.data)
    if question.steps != T2_STEPS and (
        "T3" in question.threats or not (choosing or all(map(parse_defenses, question.defenses)))
    ):
        raise InvalidInput(
            f"T2 has {T2_STEPS} steps where it is reported without a defense; others are for choosing "
            f"settings, and for dear defenses.",
            field="--steps",
            help=f"Leave it out, or measure on --split {HELD_OUT}, or behind --defense alone, without T3.",
        )
    if question.draws is not None and "T3" in question.threats:
        raise InvalidInput(
            "T3 is the strongest attack, with all its draws.",
            field="--draws",
            help="Leave it out, or ask for T2 and black-box without T3.",
        )


def _measured(
    question: Question, subject: Subject, threat: Threat, eps: float, progress: Progress, *, wait: bool
) -> AtLevel | None:
    """The cell, from wherever it is had; None if another process is at it, or at a part of it, and we don't
    `wait`.
    """
    path, key = cell_of(question, subject, threat, eps)
    found = recall(path, len(subject.pictures.indices))
    if found is not None:
        return found
    with claimed(path, wait=wait) as ours:
        found = recall(path, len(subject.pictures.indices))
        if found is None and ours:
            found = _measure(question, subject, threat, eps, progress, wait=wait)
            if found is not None:
                keep(path, key, found)
                forget_parts(path)
    return found


def _measure(
    question: Question, subject: Subject, threat: Threat, eps: float, progress: Progress, *, wait: bool
) -> AtLevel | None:
    clip, classifier, pictures = subject.clip, subject.classifier, subject.pictures
    jury, randomized = jury_of(subject.rule, randomized=subject.randomized), subject.randomized
    if threat == "T0b":
        return measure_transfer(
            question.surrogates, eps, clip, classifier, pictures, jury=jury, progress=progress
        )
    if threat == "static":
        return measure_static(eps, clip, subject.prompts, classifier, pictures, jury=jury, progress=progress)
    if threat == "black-box":
        queries, draws = question.queries, question.draws_at(threat)
        return measure_black_box(
            eps,
            clip,
            classifier,
            pictures,
            randomized=randomized,
            jury=jury,
            progress=progress,
            queries=queries,
            draws=draws,
        )
    known: dict[Level, AtLevel] = {}
    for part in WITHIN_T3 if threat == "T3" else ():
        within = _measured(question, subject, part, eps, progress, wait=wait)
        if within is None:
            return None
        known[part] = within
    return measure_level(
        threat,
        eps,
        clip,
        classifier,
        pictures,
        randomized=randomized,
        rule=subject.rule,
        progress=progress,
        strength=question.strength,
        steps=question.steps,
        restarts=question.restarts,
        draws=question.draws_at(threat),
        search=question.search,
        known=known,
        parts=parts_of(cell_of(question, subject, threat, eps)[0]),
    )


def _result(question: Question, subject: Subject, threat: Threat, eps: float, found: AtLevel) -> Result:
    measured, source = found.measured, subject.source
    share = accuracy(measured.correct)
    values = {
        "backbone": subject.backbone,
        "prompt_set": subject.prompt_set,
        **_seen(subject),
        "data": source.name,
        "split": source.split,
        **({} if source.classes is None else {"classes": source.classes.name, "among": source.among}),
        "defense": subject.defense,
        "threat": threat,
        "eps": radius_text(eps),
        "n": len(measured.correct),
        "accuracy": share.value,
        "low": share.low,
        "high": share.high,
        "accuracy_8bit": accuracy(measured.correct_8bit).value,
        **({} if measured.abstained is None else {"abstained": accuracy(measured.abstained).value}),
        "attack": found.attack,
        **question.unusual(threat, randomized=subject.randomized),
        **({} if found.fell_to is None else {"fell_to": found.fell_to}),
        "measured_on": measured_on(subject.clip, subject.pictures.data, subject.pictures.indices),
        "right": packed(measured.correct),
        "seed": subject.pictures.seed,
        "seconds": round(measured.seconds, 3),
        "cost": measured.cost._asdict(),
        "command": _command(question, subject, threat, eps),
    }
    return Result.model_validate(values)


def _seen(subject: Subject) -> dict[str, int | str]:
    """How many of the names whose pictures are measured a set was trained on, and by which record its
    settings were chosen.
    """
    learned_on, data = subject.found.learned_on, subject.pictures.data
    measured = {data.labels[target] for target in data.targets.unique().tolist()}
    seen: dict[str, int | str] = (
        {"seen_labels": len(measured & {*learned_on}), "measured_labels": len(measured)} if learned_on else {}
    )
    return seen if subject.found.selection is None else {**seen, "selection": subject.found.selection}


def _command(question: Question, subject: Subject, threat: Threat, eps: float) -> str:
    """What measures this one row again: every choice spelled out, the prompt set by its version."""
    source = subject.source
    written = threat in ("T0b", "T1", "T3") and source.templates != (HANDCRAFTED_TEMPLATE,)
    words = ["robustclip", "evaluate", "--backbone", subject.backbone]
    words += ["--pretrained", question.pretrained] if question.pretrained else []
    words += [
        "--prompt-set",
        subject.prompt_set,
        "--data",
        str(source.folder),
        "--split",
        source.split,
        "--threat",
        threat,
    ]
    words += [] if source.classes is None else ["--classes", str(source.classes), "--among", source.among]
    words += [] if threat == "clean" else ["--eps", radius_text(eps)]
    words += [word for template in source.templates for word in ("--template", template)] if written else []
    words += ["--strength", question.strength] if threat == "T3" else []
    words += [
        word
        for name, number in question.unusual(threat, randomized=subject.randomized).items()
        for word in (f"--{name}", str(number))
    ]
    words += (
        [word for surrogate in question.surrogates for word in ("--surrogate", surrogate)]
        if threat == "T0b"
        else []
    )
    words += [] if subject.defense == NO_DEFENSE else ["--defense", subject.defense]
    words += [
        "--limit",
        str(question.limit),
        "--seed",
        str(subject.pictures.seed),
        "--batch",
        str(question.batch),
    ]
    words += ["--store", str(question.store), "--device", question.device, "--json"]
    return shlex.join(words)
