"""What was found about smoothed decisions, as JSON: counts with Wilson's intervals, and the command that
makes them again.
"""

import math
import shlex
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from robustclip.certificates.certify import conclude
from robustclip.measuring import wilson
from robustclip.threat import L2, LEVELS
from robustclip.types import Cost, price
from training.measuring.certified.attack import Attempt
from training.measuring.certified.certification import Settled
from training.measuring.certified.subjects import SmoothedSubject

Facts: TypeAlias = dict[str, Any]


def certified_facts(
    subject: SmoothedSubject, settled: Sequence[Settled], *, per_picture: bool = False
) -> Facts:
    """One row: a prompt set under a smoothed rule on all its pictures."""
    question, options = subject.question, subject.options
    values = 3 * subject.clip.image_size**2
    unanimous = conclude(torch.tensor([1]), torch.tensor([options.n]), ("all",), values, options)
    attempts = [attempt for each in settled for attempt in each.attempts]
    direct = [each.same for each in settled if each.same is not None]
    refuted = [
        {"picture": each.name, "certificate": each.certificate.model_dump(), "attempt": attempt.model_dump()}
        for each in settled
        for attempt in each.attempts
        if attempt.refutes
    ]
    return {
        "backbone": question.backbone,
        "prompt_set": subject.found.name,
        "data": question.data.name,
        "split": question.data.split,
        "defense": question.defense,
        "denoise": options.denoise,
        "sigma": options.sigma,
        "choosing": options.n0,
        "votes": options.n,
        "alpha": options.alpha,
        "seed": options.seed,
        "n": len(settled),
        "ceiling_l2": unanimous.radius_l2,
        "right": _share([each.answer == each.truth for each in settled]),
        "abstained": _share([each.answer is None for each in settled]),
        "certified": _share([not each.certificate.abstained for each in settled]),
        "within": [
            {
                "l2": radius,
                "linf": f"{LEVELS * radius / math.sqrt(values):.3g}/{LEVELS}",
                **_share([_right_within(each, radius) for each in settled]),
            }
            for radius in question.radii
        ],
        **({"attacks": _attacks(subject, attempts), "refuted": refuted} if question.assault else {}),
        **({"direct": {"n": len(direct), "same": sum(direct)}} if direct else {}),
        "exploratory": any(each.certificate.exploratory for each in settled),
        "cost": _cost(subject, attempts, direct=len(direct))._asdict(),
        "command": _command(subject),
        **({"pictures": [_picture(each) for each in settled]} if per_picture else {}),
    }


def holds(row: Facts) -> bool:
    """Whether nothing speaks against the certificates of a row: none was refuted, and both paths counted the
    same votes.
    """
    direct = row.get("direct", {"n": 0, "same": 0})
    return not row.get("refuted") and direct["same"] == direct["n"]


def _share(flags: Sequence[bool]) -> Facts:
    found = wilson(sum(flags), len(flags))
    return {"count": sum(flags), "share": found.value, "low": found.low, "high": found.high}


def _right_within(each: Settled, radius: float) -> bool:
    return each.certificate.label == each.truth and each.certificate.covers(L2(radius=radius))


def _attacks(subject: SmoothedSubject, attempts: Sequence[Attempt]) -> list[Facts]:
    assault = subject.question.assault
    rows: list[Facts] = []
    for factor in () if assault is None else assault.factors:
        for norm in ("l2", "linf"):
            own = [attempt for attempt in attempts if (attempt.factor, attempt.norm) == (factor, norm)]
            fell = sum(attempt.fell for attempt in own)
            share = wilson(fell, len(own)) if own else None
            silent = sum(attempt.answer is None for attempt in own)
            interval = {} if share is None else {"low": share.low, "high": share.high}
            rows.append(
                {"norm": norm, "factor": factor, "n": len(own), "fell": fell, "no_answer": silent, **interval}
            )
    return rows


def _cost(subject: SmoothedSubject, attempts: Sequence[Attempt], *, direct: int) -> Cost:
    """As if nothing had been there before."""
    cost = price(subject.vote, (subject.options.n0 + subject.options.n) * (len(subject.indices) + direct))
    for attempt in attempts:
        cost = cost.plus(Cost(*attempt.cost))
    return cost


def _picture(each: Settled) -> Facts:
    attempts = [
        attempt.model_dump(include={"norm", "factor", "distance", "hits", "answer", "fell"})
        for attempt in each.attempts
    ]
    certificate = each.certificate.model_dump(include={"label", "hits", "radius_l2"})
    return {
        "picture": each.name,
        "truth": each.truth,
        "answer": each.answer,
        **certificate,
        **({"attacks": attempts} if attempts else {}),
    }


def _command(subject: SmoothedSubject) -> str:
    """What makes this one row again: every choice spelled out, the prompt set by its version, alpha as its
    share.
    """
    question, options = subject.question, subject.options
    words = ["robustclip", "certified", "--backbone", question.backbone]
    words += ["--pretrained", question.pretrained] if question.pretrained else []
    words += [
        "--prompt-set",
        subject.found.name,
        "--data",
        str(question.data.folder),
        "--split",
        question.data.split,
    ]
    words += [] if question.defense == "none" else ["--defense", question.defense]
    words += [
        "--sigma",
        str(options.sigma),
        *([] if options.denoise is None else ["--denoise", options.denoise]),
    ]
    words += [
        "--n",
        str(options.n),
        "--n0",
        str(options.n0),
        "--alpha",
        str(options.alpha),
        "--limit",
        str(question.limit),
    ]
    words += [word for radius in question.radii for word in ("--radius", str(radius))]
    if question.assault is not None:
        words += ["--attack", ",".join(map(str, question.assault.factors))]
        words += [
            word
            for name in ("steps", "draws", "restarts")
            for word in (f"--{name}", str(getattr(question.assault, name)))
        ]
    words += ["--direct", str(question.direct)] if question.direct else []
    return shlex.join(
        [
            *words,
            "--seed",
            str(options.seed),
            "--store",
            str(question.store),
            "--device",
            question.device,
            "--json",
        ]
    )
