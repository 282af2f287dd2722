"""From an attack's best point, and its judgement by the deployed chain, to the parts of a report."""

import base64
import hashlib
import math
from collections.abc import Sequence

from torch import Tensor

from robustclip.attacks import AnyAttack
from robustclip.attacks.ensemble import Ensemble
from robustclip.attacks.events import Meter
from robustclip.attacks.minimal import Minimal
from robustclip.certificates.certify import CertifyOptions, certify, noisy_classifier
from robustclip.certificates.vote import smoothing_of
from robustclip.deployed import DeployedClassifier
from robustclip.probing.attacker import Attacker
from robustclip.probing.options import ProbeOptions
from robustclip.probing.served import Candidate
from robustclip.probing.trials import Bracketed, Found
from robustclip.reports.report import AttackRecord, CertificatePart, Heat, Knowledge, MinimalRadius, Trace
from robustclip.reports.witnesses import size_of
from robustclip.threat import LEVELS, BallSpec, Linf, radius_text
from robustclip.types import Cost, DeviceAccess, Pixels, price


def attack_record(
    attack: AnyAttack | Minimal,
    knowledge: Knowledge,
    candidate: Candidate,
    *,
    origin: Pixels,
    attacker: Attacker,
    options: ProbeOptions,
    cost: Cost,
) -> AttackRecord:
    """The record of an attack: its parameters, both judgements, and the size of the change."""
    change = candidate.pixels - origin
    linf = change.abs().max().item()
    score = (
        "cascade"
        if isinstance(attack, Ensemble)
        else "embedding_shift"
        if knowledge == "oblivious"
        else options.score
    )
    return AttackRecord(
        kind=attack.kind,
        params=attack.model_dump(mode="json", exclude={"kind"}),
        score=score,
        knowledge=knowledge,
        gradient=attacker.gradient(knowledge),
        eot=attacker.draws(knowledge),
        success=candidate.success,
        success_8bit=candidate.success_8bit,
        rate=candidate.rate,
        label=candidate.decision.label,
        probability=candidate.decision.probability,
        margin=candidate.decision.margin,
        linf=linf,
        linf_levels=round(linf * LEVELS, 4),
        l2=change.norm().item(),
        first_success_step=None,
        trace=None,
        heat=Heat.of(change) if "heat" in options.include else None,
        adversarial_png=_base64(candidate) if "adversarial" in options.include else None,
        witness_sha256=None if candidate.float_only else hashlib.sha256(candidate.png).hexdigest(),
        forward=cost.forward,
        backward=cost.backward,
    )


def with_search(record: AttackRecord, search: Found, options: ProbeOptions) -> AttackRecord:
    """The record with the course of its search."""
    first = int(search.attacked.first_success[0])
    trace = (
        Trace.of(search.attacked.trace_value[:, 0], search.attacked.trace_margin[:, 0])
        if "curve" in options.include
        else None
    )
    return record.model_copy(
        update={"first_success_step": None if first < 0 else first, "trace": trace, "stages": search.stages}
    )


def certificate_of(
    victim: DeployedClassifier, pixels: Tensor, options: CertifyOptions, *, access: DeviceAccess, meter: Meter
) -> CertificatePart:
    """The certificate of the vote about one picture [3, S, S], by the encoder that serves; the meter pays for
    each batch.
    """
    rule = smoothing_of(victim.defense)
    denoiser = victim.defense if rule is None else victim.defense[1:]
    with access.hold():
        vote = noisy_classifier(victim.served.classifier, options.sigma, denoiser, denoise=options.denoise)
    certificate = certify(
        access.shared(vote), pixels, options, on_rows=lambda rows: meter.pay(price(vote, rows))
    )
    return CertificatePart(
        **certificate.model_dump(),
        served=rule is not None and (rule.sigma, rule.denoise) == (options.sigma, options.denoise),
    )


def minimal_radius(
    minimal: Minimal, result: Bracketed, candidate: Candidate | None, records: Sequence[AttackRecord]
) -> MinimalRadius:
    """The bracket in the units of a report. `level_8bit` may come from the PNG of any attack."""
    norm, broken = minimal.ball.kind, result.bracket.broken
    levels = [record.linf_levels for record in records if record.success_8bit]
    witness = candidate if candidate is not None and candidate.success_8bit else None
    if witness is not None and norm == "linf" and broken is not None:
        levels.append(_levels(broken))
    return MinimalRadius(
        norm=norm,
        unbroken=result.bracket.unbroken,
        unbroken_text=radius_text(result.bracket.unbroken, norm),
        broken=broken,
        broken_text=None if broken is None else radius_text(broken, norm),
        label=None if candidate is None else candidate.decision.label,
        level_8bit=round(min(levels)) if levels and norm == "linf" else None,
        farthest=minimal.ball.radius,
        width=minimal.closeness,
        complete=result.complete,
        witness_sha256=None if witness is None else hashlib.sha256(witness.png).hexdigest(),
        forward=result.cost.forward,
        backward=result.cost.backward,
    )


def brought_nearer(bracket: MinimalRadius, record: AttackRecord) -> MinimalRadius:
    """The bracket after an attack outside its search. Where that broke below `unbroken`, this is 0."""
    size, norm = size_of(record, bracket.norm), bracket.norm
    if not (record.success or record.success_8bit) or (bracket.broken is not None and size >= bracket.broken):
        return bracket
    unbroken = bracket.unbroken if bracket.unbroken < size else 0.0
    levels = [
        level
        for level in (bracket.level_8bit, round(record.linf_levels) if record.success_8bit else None)
        if level is not None
    ]
    update = {
        "unbroken": unbroken,
        "unbroken_text": radius_text(unbroken, norm),
        "broken": size,
        "broken_text": radius_text(size, norm),
        "label": record.label,
        "level_8bit": min(levels) if levels and norm == "linf" else None,
        "complete": size - unbroken <= bracket.width * (1 + 1e-3),
        "witness_sha256": record.witness_sha256 if record.success_8bit else None,
    }
    return bracket.model_copy(update=update)


def just_around(ball: BallSpec, radius: float, *, at_most: float) -> BallSpec:
    """The smallest ball that holds a witness at `radius` and its PNG: up to the next level for Linf; never
    larger than `at_most`.
    """
    wide = _levels(radius) / LEVELS if isinstance(ball, Linf) else radius
    return ball.model_copy(update={"radius": max(radius, min(wide, at_most))})


def _levels(radius: float) -> int:
    return math.ceil(radius * LEVELS - 1e-4)


def _base64(candidate: Candidate) -> str | None:
    return None if candidate.float_only else base64.b64encode(candidate.png).decode()
