"""The report of a probe: the victim, the question, and the results."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version

from robustclip.attacks.events import Meter
from robustclip.defenses import network_digests
from robustclip.deployed import DeployedClassifier
from robustclip.digests import levels_digest
from robustclip.errors import InvalidInput
from robustclip.models.labels import meanings
from robustclip.probing.examination import successes_of
from robustclip.probing.options import ProbeOptions
from robustclip.probing.served import Aim
from robustclip.probing.verdict import reach_verdict
from robustclip.reports.report import (
    AttackRecord,
    CertificatePart,
    Decision,
    DefensePart,
    Gap,
    InputPart,
    MinimalRadius,
    ProbeReport,
    VictimPart,
)
from robustclip.sanity.selftest import SelfTest
from robustclip.sanity.symptoms import Diagnostic
from robustclip.types import Pixels


def named_labels(options: ProbeOptions, labels: Sequence[str]) -> tuple[int | None, int | None]:
    """The indices of the true label and of the target label, where they are named. Raises InvalidInput for
    one that is not among `labels`, and where both are the same.
    """
    truth, goal = (
        None if label is None else _index(label, labels, field)
        for field, label in (("true_label", options.true_label), ("target_label", options.target_label))
    )
    if goal is not None and goal == truth:
        raise InvalidInput(
            f"{labels[goal]!r} is the true label: nothing is to change.",
            field="target_label",
            help="Choose another label.",
        )
    return truth, goal


def question_of(
    victim: DeployedClassifier, pixels: Pixels, options: ProbeOptions, aim: Aim, clean: Decision
) -> InputPart:
    """The picture [1, 3, S, S] and what was to happen to the decision about it."""
    return InputPart(
        sha256=levels_digest(pixels),
        resolution=(pixels.shape[-2], pixels.shape[-1]),
        true_label=victim.outcomes[aim.truth],
        target_label=None if aim.goal is None else victim.outcomes[aim.goal],
        goal="reach_target"
        if aim.goal is not None
        else "change_decision"
        if options.true_label is None
        else "change_label",
        clean=clean,
    )


def report_of(
    victim: DeployedClassifier,
    question: InputPart,
    options: ProbeOptions,
    meter: Meter,
    *,
    records: Sequence[AttackRecord],
    diagnostics: Sequence[Diagnostic],
    minimal_radius: MinimalRadius | None,
    self_test: SelfTest | None,
    certificate: CertificatePart | None,
) -> ProbeReport:
    """The report with its verdict; the meter says what all of it cost, and whether it was cut."""
    spent = meter.spent
    return ProbeReport(
        code_version=version("robustclip"),
        seed=options.seed,
        device=str(victim.clip.device),
        victim=describe_victim(victim),
        input=question,
        attacks=tuple(records),
        gap=_gap(victim, records),
        diagnostics=tuple(diagnostics),
        verdict=reach_verdict(
            question,
            records,
            diagnostics,
            balls=[attack.ball for attack in options.attacks],
            charged=spent.charged,
            cut=meter.cut,
            certificate=certificate,
        ),
        forward=spent.forward,
        backward=spent.backward,
        charged=spent.charged,
        minimal_radius=minimal_radius,
        self_test=self_test,
        certificate=certificate,
        cut=meter.cut,
    )


def describe_victim(victim: DeployedClassifier) -> VictimPart:
    """Everything that decides the answer, and one digest over it."""
    parts = tuple(
        DefensePart(
            kind=spec.kind,
            params=spec.model_dump(mode="json", exclude={"kind"}),
            gradient=spec.gradient,
            randomized=spec.randomized,
            stage=spec.stage,
            status=spec.status,
        )
        for spec in victim.defense
    )
    decisive = (
        victim.clip.fingerprint,
        victim.prompts.digest(),
        victim.labels,
        [part.model_dump_json() for part in parts],
        victim.serving.backend,
        *network_digests(victim.defense),
        *(() if victim.scoring == "softmax" else (victim.scoring,)),
    )
    return VictimPart(
        digest=hashlib.sha256(repr(decisive).encode()).hexdigest(),
        arch=victim.clip.arch,
        pretrained=victim.clip.pretrained,
        fingerprint=victim.clip.fingerprint,
        prompt_set=victim.prompt_set,
        templates=victim.prompts.templates,
        labels=victim.labels,
        scoring=victim.scoring,
        defense=parts,
        randomized=any(part.randomized for part in parts),
        encoder=victim.serving.backend,
    )


def _gap(victim: DeployedClassifier, records: Sequence[AttackRecord]) -> Gap | None:
    successes = successes_of(records)
    if not victim.defense or not {"static", "adaptive"} <= successes.keys():
        return None
    static, adaptive = successes["static"], successes["adaptive"]
    return Gap(static_success=static, adaptive_success=adaptive, illusory=adaptive and not static)


def _index(label: str, labels: Sequence[str], field: str) -> int:
    (meant,) = meanings([label], labels)
    if len(meant) != 1:
        raise InvalidInput(
            f"{label!r} is not among the labels.",
            field=field,
            help=f"Choose one of: {', '.join(labels[:10])}.",
        )
    return meant[0]
