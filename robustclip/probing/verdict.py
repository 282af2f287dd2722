"""The verdict on an attacked decision: one value, one sentence. No decision is ever called robust."""

from collections.abc import Iterable, Sequence

from robustclip.attacks.events import Cut
from robustclip.reports.report import (
    AttackRecord,
    CertificatePart,
    InputPart,
    ProbeReport,
    Verdict,
    VerdictValue,
)
from robustclip.sanity.symptoms import Diagnostic
from robustclip.threat import BallSpec, Norm, radius_text

_SEVERITY: tuple[VerdictValue, ...] = ("broken", "inconclusive", "not-broken-within-budget", "certified")
_NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}
_CUTS: dict[Cut, str] = {
    "deadline": "its time was over",
    "cancelled": "it was stopped",
    "budget": "its passes were spent",
}


def worst(reports: Iterable[ProbeReport]) -> VerdictValue:
    """The worst verdict: broken, then inconclusive; certified is the best."""
    values: list[VerdictValue] = [report.verdict.value for report in reports]
    return next(value for value in _SEVERITY if value in values)


def reach_verdict(
    question: InputPart,
    records: Sequence[AttackRecord],
    diagnostics: Sequence[Diagnostic],
    *,
    balls: Sequence[BallSpec],
    charged: int,
    cut: Cut | None = None,
    certificate: CertificatePart | None = None,
) -> Verdict:
    """A verified witness is `broken` whatever the checks say; then a certificate of the served rule counts.

    With neither, a cut, a hard flag or a missing adaptive attack is `inconclusive`.

    `balls` are those of the attacks in the options, `charged` is the cost of all, `cut` what ended the probe
    early.
    """
    if reached_untouched(question):
        targeted = question.goal == "reach_target"
        wanted = ", which is the target" if targeted else f" instead of {question.true_label!r}"
        sentence = f"The clean picture is already taken for {question.clean.label!r}{wanted}."
        return Verdict(value="broken", bits="8", reason="clean-wrong", sentence=sentence)
    if hits := [record for record in records if record.linf == 0 and (record.success or record.success_8bit)]:
        # The mean over a defense's draws decided otherwise than most of them do: no change did that.
        sentence = f"Most draws of the defense already take the clean picture for {hits[0].label!r}."
        return Verdict(value="broken", bits="8", reason="clean-wrong", sentence=sentence)
    if hits := [record for record in records if record.success_8bit]:
        return Verdict(value="broken", bits="8", reason="witness", sentence=_testimony(question, hits, "PNG"))
    if hits := [record for record in records if record.success]:
        return Verdict(
            value="broken",
            bits="float",
            reason="witness",
            sentence=_testimony(question, hits, "float pixels"),
        )
    tried = _largest(balls)
    if (
        certificate is not None
        and certificate.served
        and certificate.label == question.true_label
        and all(map(certificate.covers, balls))
    ):
        claim = (
            f"No change up to {tried} turns the vote from {question.true_label!r}, wrong with "
            f"probability {certificate.alpha:g}"
        )
        return Verdict(
            value="certified",
            bits=None,
            reason="certificate",
            sentence=f"{claim} ({certificate.hits} of {certificate.n} votes).",
        )
    if cut is not None:
        return _inconclusive(
            cut, f"Nothing broke it up to {tried} before {_CUTS[cut]} ({charged} charged passes)."
        )
    flags = [diagnostic for diagnostic in diagnostics if diagnostic.fired and diagnostic.severity == "hard"]
    if flags:
        named = ", ".join(f"{flag.id} {flag.name}" for flag in flags)
        return _inconclusive(
            "masking", f"Nothing broke it up to {tried}, but the attack can't be trusted: {named}."
        )
    known = {record.knowledge for record in records}
    if "black_box" in known and "adaptive" not in known:
        return _inconclusive(
            "black-box-only",
            f"No attack that asks for answers alone broke it up to {tried}; one with gradients was not "
            f"tried.",
        )
    if "adaptive" not in known:
        return _inconclusive(
            "static-only",
            f"No transferred attack broke it up to {tried}; an attack that knows the defense was not tried.",
        )
    if any(record.rate is not None and record.rate.high >= 0.5 for record in records):
        return _inconclusive("random", f"Up to {tried} about half of the defense's draws decide wrongly.")
    sentence = f"No attack tried up to {tried} changed the decision ({charged} charged passes)."
    return Verdict(value="not-broken-within-budget", bits=None, reason="budget-spent", sentence=sentence)


def reached_untouched(question: InputPart) -> bool:
    """Whether the decision about the clean picture is what the attack wants: then there is nothing to attack.

    A vote that abstains has decided nothing yet.
    """
    clean, targeted = question.clean, question.goal == "reach_target"
    return not clean.abstained and (clean.label == question.target_label if targeted else not clean.correct)


def _inconclusive(reason: str, sentence: str) -> Verdict:
    return Verdict(value="inconclusive", bits=None, reason=reason, sentence=sentence)


def _testimony(question: InputPart, hits: Sequence[AttackRecord], form: str) -> str:
    """The least conspicuous witness in a sentence."""
    best = min(hits, key=lambda record: (record.linf, record.knowledge == "static"))
    before = "no answer" if question.clean.abstained else repr(question.clean.label)
    return (
        f"A change of {_size(best)} turns {before} into {best.label!r}"
        f" ({best.knowledge} {best.kind}, verified on the {form} in a fresh forward)."
    )


def _size(witness: AttackRecord) -> str:
    """How far a witness is from the picture, in the words of the norm that its attack kept to."""
    ball = witness.params["ball"]
    if ball["kind"] == "l2":
        return f"length {witness.l2:.3g} (L2, at most {radius_text(ball['radius'], 'l2')})"
    return f"at most {witness.linf_levels:g}/255 a value"


def _largest(balls: Sequence[BallSpec]) -> str:
    """The largest radius of each norm."""
    largest: dict[Norm, float] = {}
    for ball in balls:
        largest[ball.kind] = max(ball.radius, largest.get(ball.kind, 0.0))
    return ", ".join(f"{radius_text(radius, norm)} ({_NORMS[norm]})" for norm, radius in largest.items())
