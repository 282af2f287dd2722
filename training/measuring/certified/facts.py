"""The row about a smoothed rule: counts with Wilson's intervals, and the command that makes them again."""

import math
import shlex
from collections.abc import Sequence

import torch

from robustclip.certificates.certify import conclude
from robustclip.measuring import wilson
from robustclip.threat import L2, LEVELS
from robustclip.types import Cost, price
from training.measuring.certified.certification import Settled
from training.measuring.certified.subjects import Attempt, SmoothedSubject
from training.measuring.schema.files import Attacks, Certified, Direct, Refuted, Share, Within


def certified_facts(
    subject: SmoothedSubject, settled: Sequence[Settled], *, per_picture: bool = False
) -> Certified:
    """One row: a prompt set under a smoothed rule on all its pictures."""
    question, options = subject.question, subject.options
    dimension = 3 * subject.clip.image_size**2
    unanimous = conclude(torch.tensor([1]), torch.tensor([options.n]), ("all",), dimension, options)
    attempts = [attempt for each in settled for attempt in each.attempts]
    direct = [each.same for each in settled if each.same is not None]
    refuted = [
        Refuted(
            picture=each.name,
            certificate=each.certificate.model_dump(mode="json"),
            attempt=attempt.model_dump(mode="json"),
        )
        for each in settled
        for attempt in each.attempts
        if attempt.refutes
    ]
    values = {
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
        "within": [_within(settled, radius, dimension) for radius in question.radii],
        **({"attacks": _attacks(subject, attempts), "refuted": refuted} if question.assault else {}),
        **({"direct": Direct(n=len(direct), same=sum(direct))} if direct else {}),
        "exploratory": any(each.certificate.exploratory for each in settled),
        "cost": _cost(subject, attempts, direct=len(direct))._asdict(),
        "command": _command(subject),
        **({"pictures": [_picture(each) for each in settled]} if per_picture else {}),
    }
    return Certified.model_validate(values)


def _share(flags: Sequence[bool]) -> Share:
    share, low, high = wilson(sum(flags), len(flags))
    return Share(count=sum(flags), share=share, low=low, high=high)


def _within(settled: Sequence[Settled], radius: float, dimension: int) -> Within:
    """`dimension`: how many values a picture has."""
    linf = f"{LEVELS * radius / math.sqrt(dimension):.3g}/{LEVELS}"
    ball = L2(radius=radius)
    share = _share(
        [each.certificate.label == each.truth and each.certificate.covers(ball) for each in settled]
    )
    return Within.model_validate({"l2": radius, "linf": linf, **share.as_json()})


def _attacks(subject: SmoothedSubject, attempts: Sequence[Attempt]) -> list[Attacks]:
    assault = subject.question.assault
    rows: list[Attacks] = []
    for factor in () if assault is None else assault.factors:
        for norm in ("l2", "linf"):
            own = [attempt for attempt in attempts if (attempt.factor, attempt.norm) == (factor, norm)]
            fell = sum(attempt.fell for attempt in own)
            share = wilson(fell, len(own)) if own else None
            silent = sum(attempt.answer is None for attempt in own)
            interval = {} if share is None else {"low": share.low, "high": share.high}
            about = {"norm": norm, "factor": factor, "n": len(own), "fell": fell, "no_answer": silent}
            rows.append(Attacks.model_validate(about | interval))
    return rows


def _cost(subject: SmoothedSubject, attempts: Sequence[Attempt], *, direct: int) -> Cost:
    """As if nothing had been there before."""
    cost = price(subject.vote, (subject.options.n0 + subject.options.n) * (len(subject.indices) + direct))
    for attempt in attempts:
        cost = cost.plus(Cost(*attempt.cost))
    return cost


def _picture(each: Settled) -> dict[str, object]:
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
    """What makes this one row again: every choice is spelled out, the prompt set by its version, alpha as
    its share.
    """
    question, options, assault = subject.question, subject.options, subject.question.assault
    attack = {} if assault is None else assault.model_dump(include={"steps", "draws", "restarts"})
    words = [
        *("robustclip", "certified", "--backbone", question.backbone),
        *(("--pretrained", question.pretrained) if question.pretrained else ()),
        *("--prompt-set", subject.found.name, "--data", question.data.folder),
        *("--split", question.data.split),
        *(() if question.defense == "none" else ("--defense", question.defense)),
        *("--sigma", options.sigma),
        *(() if options.denoise is None else ("--denoise", options.denoise)),
        *("--n", options.n, "--n0", options.n0, "--alpha", options.alpha, "--limit", question.limit),
        *(word for radius in question.radii for word in ("--radius", radius)),
        *(() if assault is None else ("--attack", ",".join(map(str, assault.factors)))),
        *(word for name, value in attack.items() for word in (f"--{name}", value)),
        *(("--direct", question.direct) if question.direct else ()),
        *("--seed", options.seed, "--store", question.store, "--device", question.device, "--json"),
    ]
    return shlex.join(map(str, words))
