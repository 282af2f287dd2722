"""What an evaluation will cost, before it begins: its cells, charged passes (forward + 2 backward) at most,
and a guess of the time.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from robustclip.attacks.pgd import PGD
from robustclip.models.clip import Clip
from robustclip.models.towers import encode_image
from robustclip.scores.kinds import EmbeddingShift
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf, radius_text
from robustclip.types import Cost, price
from training.measuring.evaluation.question import Question, Threat
from training.measuring.evaluation.rows import Subject, cell_of
from training.threats.bank import feature_attack
from training.threats.defended import black_box_attack
from training.threats.judging import jury_of
from training.threats.levels import T0_STEPS, WITHIN_T3
from training.threats.strongest import leaving_jury, strong_ensemble
from training.threats.surrogates import STEPS as SURROGATE_STEPS
from training.threats.transfers import carried_attack

_ROWS = 8  # of the trial that tells how long a pass takes


class Planned(NamedTuple):
    """One cell to come. `charged`: at most, its share of what is made once for several; 0 for what is
    `measured` already.
    """

    subject: Subject
    threat: Threat
    eps: float
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
        for threat, eps in question.conditions():
            path, _ = cell_of(question, subject, threat, eps)
            measured = path.exists() and not fresh
            twin = path.name in settled  # the same words under another name
            charged = 0 if measured or twin else _charged(question, subject, threat, eps, settled)
            settled.add(path.name)
            planned.append(Planned(subject, threat, eps, charged, measured))
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
        "eps": radius_text(planned.eps),
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


def _charged(question: Question, subject: Subject, threat: Threat, eps: float, settled: set[str]) -> int:
    """Charged passes of a cell; what is made for several, and T3's parts, are billed to the first that needs
    them, and entered in `settled`.
    """
    n, labels = len(subject.pictures.indices), len(subject.classifier.labels)
    jury, draws = (
        jury_of(subject.rule, randomized=subject.randomized),
        question.draws_at(threat) if subject.randomized else 1,
    )
    defended = subject.classifier
    if threat == "clean":
        return price(defended, n * jury.draws).charged
    judged = price(defended, 3 * n * jury.draws).charged  # untouched, attacked, rounded to 8 bits
    ball = Linf(radius=eps)
    if threat == "T2":
        attack = PGD(ball=ball, steps=question.steps, starts=("random",), restarts=question.restarts)
        searched = attack.bill(n * draws)
        again = Cost(
            searched.forward if question.search != "float32" else 0
        )  # near the boundary what was reduced is asked in full
        return judged + searched.plus(again).through(defended.toll).charged
    if threat == "black-box":
        attack = black_box_attack(eps, queries=question.queries, randomized=subject.randomized)
        return judged + attack.bill(n * draws).through(defended.toll).charged
    if threat == "T3":
        within = 0
        for part in WITHIN_T3:
            path, _ = cell_of(question, subject, part, eps)
            if path.name not in settled and not path.exists():
                settled.add(path.name)
                within += _charged(question, subject, part, eps, settled)
        ensemble = strong_ensemble(
            eps, question.strength, randomized=subject.randomized, search=question.search
        )
        searched = ensemble.bill(n * draws, labels=labels, judged=subject.randomized)
        if subject.randomized:  # the picture itself and what each variant of an attack finds
            candidates = 1 + sum(len(stage.variants) for stage in ensemble.stages(labels))
            judged += price(defended, n * candidates * leaving_jury(jury).draws).charged
        return judged + within + searched.through(defended.toll).charged
    made = {
        "T0": feature_attack(eps, steps=T0_STEPS).bill(1).charged + 1,
        "T0b": 2 * len(question.surrogates) * (3 * SURROGATE_STEPS + 1),
        "T1": carried_attack(eps).bill(1).charged,
        "static": carried_attack(eps).bill(1).charged,
    }[threat]
    own_tower = threat == "T1" and subject.prompts.visual is not None
    own = threat == "static" or own_tower
    once = repr(
        (
            subject.backbone,
            subject.source,
            n,
            threat,
            eps,
            subject.pictures.seed,
            subject.prompts.digest() if own else None,
        )
    )
    if once in settled:
        return judged
    settled.add(once)
    untouched = price(defended, n).charged if own_tower else 0  # who is wrong is not attacked
    return judged + untouched + n * made
