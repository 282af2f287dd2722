"""Prompt sets x data x threat levels x seeds -> rows of numbers, each with what reproduces it.

It computes; `command.py` reads options and prints, `comparison.py` and `checks.py` say what follows from the
rows.
"""

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from robustclip.defenses import network_digests, parse_defenses
from robustclip.digests import json_digest
from robustclip.measuring import accuracy
from robustclip.models import HANDCRAFTED_TEMPLATE, Clip, meanings
from robustclip.types import Progress
from training import finished
from training.data.labelled import LabelledImages
from training.measuring.evaluation.cells import (
    cell_path,
    forget,
    forget_parts,
    keep,
    packed,
    parts_of,
    recall,
)
from training.measuring.evaluation.question import NO_DEFENSE, Question, Subject
from training.measuring.schema.evaluation import Result
from training.threats.base import ThreatSet, Work, threat_level
from training.threats.judging import AtLevel


class Row(NamedTuple):
    """One number; how its prompt set was asked for; the pictures behind it, by folder and name; whether each
    was right.
    """

    result: Result
    asked: str
    folder: Path
    pictures: tuple[str, ...]
    correct: Tensor


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
        for subject, (threat, within) in itertools.product(subjects, question.conditions()):
            for part in (threat, *threat_level(threat).parts):
                forget(cell_of(question, subject, part, within)[0])
    for subject, (threat, within) in itertools.product(subjects, question.conditions()):
        if only_kept and not cell_of(question, subject, threat, within)[0].exists():
            continue

        def named(
            done: int,
            total: int,
            what: str,
            *,
            about: str = f"{subject.source.name} {subject.prompt_set} {within.text}",
        ) -> None:
            progress(done, total, f"{what} {about}")

        found = _measured(question, subject, threat, within, named, wait=wait)
        if found is None:
            continue
        names = tuple(subject.pictures.data.names[index] for index in subject.pictures.indices.tolist())
        yield Row(
            _result(question, subject, threat, within, found),
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
    question: Question, subject: Subject, threat: str, within: ThreatSet[Any]
) -> tuple[Path, dict[str, object]]:
    """Where the answer about a subject under a condition is kept, and all that it depends on."""
    pictures, level = subject.pictures, threat_level(threat)
    key: dict[str, object] = {
        "clip": subject.clip.fingerprint,
        "data": pictures.data.digest,
        "split": pictures.data.split,
        "indices": pictures.indices.tolist(),
        "prompts": subject.prompts.digest(),
        "defense": subject.defense,
        **({"networks": networks} if (networks := network_digests(parse_defenses(subject.defense))) else {}),
        **({} if subject.rule is None else {"judged_by": "votes"}),
        **_scoring(subject),
        "threat": threat,
        **within.key,
        "seed": pictures.seed,
        "batch": pictures.batch,
        "device": question.device,
        **({"templates": list(pictures.templates)} if level.reads_templates else {}),
        **level.key(subject, question),
    }
    return cell_path(question.runs / "evaluate", key), key


def _measured(
    question: Question,
    subject: Subject,
    threat: str,
    within: ThreatSet[Any],
    progress: Progress,
    *,
    wait: bool,
) -> AtLevel | None:
    """The cell, from wherever it is had; None if another process is at it, or at a part of it, and we don't
    `wait`.
    """
    path, key = cell_of(question, subject, threat, within)

    def keep_whole(found: AtLevel) -> None:
        keep(path, key, found)
        forget_parts(path)

    return finished.once(
        path,
        recall=lambda: recall(path, len(subject.pictures.indices)),
        make=lambda: _measure(question, subject, threat, within, progress, folder=parts_of(path), wait=wait),
        keep=keep_whole,
        wait=wait,
    )


def _measure(
    question: Question,
    subject: Subject,
    threat: str,
    within: ThreatSet[Any],
    progress: Progress,
    *,
    folder: Path,
    wait: bool,
) -> AtLevel | None:
    level, parts = threat_level(threat), dict[str, AtLevel]()
    for part in level.parts:
        found = _measured(question, subject, part, within, progress, wait=wait)
        if found is None:
            return None
        parts[part] = found
    return level.measure(subject, within, question, Work(progress, folder, parts))


def _result(
    question: Question, subject: Subject, threat: str, within: ThreatSet[Any], found: AtLevel
) -> Result:
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
        **_scoring(subject),
        "threat": threat,
        "eps": within.text,
        "n": len(measured.correct),
        "accuracy": share.value,
        "low": share.low,
        "high": share.high,
        "accuracy_8bit": accuracy(measured.correct_8bit).value,
        **({} if measured.abstained is None else {"abstained": accuracy(measured.abstained).value}),
        "attack": found.attack,
        **threat_level(threat).unusual(question, randomized=subject.randomized),
        **({} if found.fell_to is None else {"fell_to": found.fell_to}),
        "measured_on": measured_on(subject.clip, subject.pictures.data, subject.pictures.indices),
        "right": packed(measured.correct),
        "seed": subject.pictures.seed,
        "seconds": round(measured.seconds, 3),
        "cost": measured.cost._asdict(),
        "command": _command(question, subject, threat, within),
    }
    return Result.model_validate(values)


def _seen(subject: Subject) -> dict[str, int | str]:
    """How many of the names whose pictures are measured a set was trained on, and by which record its
    settings were chosen.
    """
    learned_on, data = subject.found.learned_on, subject.pictures.data
    measured = [data.labels[target] for target in data.targets.unique().tolist()]
    known = sum(map(bool, meanings(measured, learned_on)))
    seen: dict[str, int | str] = (
        {"seen_labels": known, "measured_labels": len(measured)} if learned_on else {}
    )
    return seen if subject.found.selection is None else {**seen, "selection": subject.found.selection}


def _scoring(subject: Subject) -> dict[str, str]:
    """Named where it is not the usual one."""
    scoring = subject.pictures.scoring
    return {} if scoring == "softmax" else {"scoring": scoring}


def _command(question: Question, subject: Subject, threat: str, within: ThreatSet[Any]) -> str:
    """What measures this one row again: every choice spelled out, the prompt set by its version."""
    source, level = subject.source, threat_level(threat)
    written = level.reads_templates and source.templates != (HANDCRAFTED_TEMPLATE,)
    words = [
        *("robustclip", "evaluate", "--backbone", subject.backbone),
        *(("--pretrained", question.pretrained) if question.pretrained else ()),
        *("--prompt-set", subject.prompt_set, "--data", str(source.folder), "--split", source.split),
        *("--threat", threat),
        *(() if source.classes is None else ("--classes", str(source.classes), "--among", source.among)),
        *within.words,
        *(word for template in source.templates if written for word in ("--template", template)),
        *level.words(question, randomized=subject.randomized),
        *(() if subject.defense == NO_DEFENSE else ("--defense", subject.defense)),
        *(word for scoring in _scoring(subject).values() for word in ("--scoring", scoring)),
        *("--limit", str(question.limit), "--seed", str(subject.pictures.seed)),
        *("--batch", str(question.batch), "--store", str(question.store)),
        *("--device", question.device, "--json"),
    ]
    return shlex.join(words)
