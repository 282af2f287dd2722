"""What an evaluation will cost, before it begins: its cells, charged passes (forward + 2 backward) at most,
and a guess of the time.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from robustclip.models import Clip, encode_image
from robustclip.scores import EmbeddingShift
from robustclip.seeds import draw_seeds
from training.measuring.evaluation.question import Question, Subject
from training.measuring.evaluation.rows import cell_of
from training.threats.base import ThreatSet, threat_level

_ROWS = 8  # of the trial that tells how long a pass takes


class Planned(NamedTuple):
    """One cell to come. `charged`: at most, its share of what is made once for several; 0 for what is
    `measured` already.
    """

    subject: Subject
    threat: str
    within: ThreatSet[Any]
    charged: int
    measured: bool


def plan(
    question: Question, subjects: Sequence[Subject], *, fresh: bool = False, settled: set[str] | None = None
) -> list[Planned]:
    """The cells in the order of their measuring. Who is right untouched and who falls early is not known yet:
    the bill can only be lower.

    `settled` remembers what was billed already, for plans of several questions together.
    """
    settled = set() if settled is None else settled
    planned: list[Planned] = []
    for subject in subjects:
        for threat, within in question.conditions():
            path, _ = cell_of(question, subject, threat, within)
            measured = path.exists() and not fresh
            twin = path.name in settled  # the same words under another name
            charged = 0 if measured or twin else _charged(question, subject, threat, within, settled)
            settled.add(path.name)
            planned.append(Planned(subject, threat, within, charged, measured))
    return planned


def seconds_per_pass(clip: Clip) -> float:
    """How long a charged pass of a picture takes on this machine now, from a trial of two gradients."""
    pixels = torch.rand(
        _ROWS, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0)
    ).to(clip.device)
    seeds = draw_seeds(0, _ROWS)
    with torch.no_grad():
        clean = encode_image(clip, pixels.flip(0))
    score = EmbeddingShift(lambda inputs: encode_image(clip, inputs), clean)
    taken: list[float] = []
    for _ in range(2):
        began = time.monotonic()
        float(score(pixels, seeds, grad=True).value.sum())
        taken.append(time.monotonic() - began)
    return min(taken) / (3 * _ROWS)


def described(planned: Sequence[Planned]) -> str:
    """One sentence: what is to come and how long it takes at most."""
    pending = [cell for cell in planned if not cell.measured]
    clips = {cell.subject.backbone: cell.subject.clip for cell in pending}
    paces = {backbone: seconds_per_pass(clip) for backbone, clip in clips.items()}
    seconds = sum(cell.charged * paces[cell.subject.backbone] for cell in pending)
    total = sum(cell.charged for cell in pending)
    return (
        f"{len(planned)} cells, {len(planned) - len(pending)} of them measured already; "
        f"at most {total:,} charged passes (forward + 2 backward), {duration(seconds)} at the present pace"
    )


def as_facts(planned: Planned) -> dict[str, object]:
    """One cell as JSON."""
    subject = planned.subject
    return {
        "backbone": subject.backbone,
        "data": subject.source.name,
        "split": subject.source.split,
        "prompt_set": subject.prompt_set,
        "defense": subject.defense,
        "threat": planned.threat,
        "eps": planned.within.text,
        "seed": subject.pictures.seed,
        "n": len(subject.pictures.indices),
        "charged": planned.charged,
        "measured": planned.measured,
    }


def duration(seconds: float) -> str:
    """How people say a time: "40 s", "12 min", "3.5 h"."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _charged(
    question: Question, subject: Subject, threat: str, within: ThreatSet[Any], settled: set[str]
) -> int:
    """Charged passes of a cell. What is made for several, and the parts of a level, are billed to the first
    that needs them, and entered in `settled`.
    """
    level = threat_level(threat)
    bill = level.bill(subject, within, question)
    pictures = subject.pictures
    whose = (subject.backbone, subject.source, len(pictures.indices), pictures.seed, bill.made_for)
    once = repr((threat, within, *whose))
    charged = bill.own + (0 if once in settled else bill.made)
    settled.add(once)
    for part in level.parts:
        path, _ = cell_of(question, subject, part, within)
        if path.name not in settled and not path.exists():
            settled.add(path.name)
            charged += _charged(question, subject, part, within, settled)
    return charged
