"""A probe report in sentences for people who did not make it. None promises more than the report holds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from robustclip.certificates.certify import Certificate
from robustclip.reports.report import AttackRecord, CertificatePart, MinimalRadius, ProbeReport
from robustclip.reports.witnesses import norm_of, radius_of
from robustclip.sanity.symptoms import Diagnostic
from robustclip.threat import LEVELS, Norm, radius_text

NORMS: dict[Norm, str] = {"linf": "Linf", "l2": "L2"}
KNOWLEDGE = {
    "adaptive": "everything, the defense included",
    "static": "everything but the defense",
    "transfer": "another prompt set",
    "black_box": "answers only, no gradients",
    "oblivious": "the image tower, no labels",
}


class VerdictWords(NamedTuple):
    """A verdict in a word, what it means, and how it looks (a class of the page's style)."""

    word: str
    look: str
    meaning: str


VERDICTS = {
    "broken": VerdictWords(
        "Broken",
        "broken",
        "There is a witness: a change within the attacker's reach that is decided otherwise, judged again "
        "in a fresh forward.",
    ),
    "inconclusive": VerdictWords(
        "Inconclusive",
        "inconclusive",
        "Nothing may be concluded: the decision was not broken, and its standing can't be trusted.",
    ),
    "not-broken-within-budget": VerdictWords(
        "Not broken", "standing", "A record of what was tried, and no promise: a stronger attack may succeed."
    ),
    "certified": VerdictWords(
        "Certified",
        "certified",
        "No change within the certified radius can alter the smoothed decision, with the confidence that is "
        "stated.",
    ),
}


def question_sentence(report: ProbeReport) -> str:
    """What the attacker wanted."""
    question = report.input
    if question.goal == "reach_target":
        return f"The attacker wants {question.target_label!r} instead of {question.true_label!r}."
    known = "which is right" if question.goal == "change_label" else "which the clean picture gets"
    return f"The attacker wants any label but {question.true_label!r}, {known}."


def attack_words(record: AttackRecord) -> tuple[str, ...]:
    """A row of the table of attacks: name, radius, what the attacker knows, outcome, decision, change, first
    success, passes.
    """
    norm, radius = norm_of(record), radius_of(record)
    outcome = (
        "yes, as a PNG too" if record.success_8bit else "as float pixels only" if record.success else "no"
    )
    if record.rate is not None:
        outcome += (
            f" ({record.rate.wrong} of {record.rate.draws} draws, {record.rate.low:.0%} to "
            f"{record.rate.high:.0%})"
        )
    return (
        record.kind,
        "" if radius is None else f"{radius_text(radius, norm)} {NORMS[norm]}",
        KNOWLEDGE[record.knowledge] + (f", averaging {record.eot} draws" if record.eot > 1 else ""),
        outcome,
        f"{record.label} ({record.probability:.1%})",
        f"length {record.l2:.3g}" if norm == "l2" else f"{record.linf_levels:.4g}/255",
        "never" if record.first_success_step is None else f"step {record.first_success_step}",
        f"{record.forward} forward, {record.backward} backward",
    )


def gap_sentence(report: ProbeReport) -> str | None:
    """What knowing the defense is worth to an attacker; None where that was not compared."""
    if report.gap is None:
        return None
    if report.gap.illusory:
        return (
            "The attack that does not know the defense fails, the one that knows it succeeds: what the "
            "defense seems to protect is an illusion."
        )
    if report.gap.adaptive_success:
        return "Knowing the defense or not, the attack succeeds."
    return "Neither the attack that knows the defense nor the one that does not succeeds."


def bracket_words(bracket: MinimalRadius) -> str:
    """The smallest radius, as far as it is known."""
    spent = (
        "" if bracket.complete else "; the search was ended before the bracket was as close as it could be"
    )
    if bracket.broken is None:
        return f"nothing broke it, {bracket.unbroken_text} withstood, which proves nothing{spent}"
    return (
        f"{bracket.broken_text} breaks it (as {bracket.label!r}), {bracket.unbroken_text} withstood, which "
        f"proves nothing{spent}"
    )


def certificate_words(certificate: Certificate) -> str:
    """What is certain and of what. Claims no more than the certificate: radii are rounded down."""
    votes = f"{certificate.hits} of {certificate.n} votes at sigma {certificate.sigma:g}"
    if certificate.abstained:
        words = f"abstains: {votes} for {certificate.label!r} prove no majority"
    else:
        l2, levels = (
            math.floor(radius * 1000) / 1000
            for radius in (certificate.radius_l2, certificate.radius_linf * LEVELS)
        )
        words = (
            f"{certificate.label!r} holds within {l2:g} (L2), {levels:g}/255 in every value: {votes}, alpha "
            f"{certificate.alpha:g}"
        )
    if isinstance(certificate, CertificatePart) and not certificate.served:
        words += "; of the vote, which is not what is served"
    return (
        f"{words}; exploratory, this noise had answered another question"
        if certificate.exploratory
        else words
    )


def trust_sentence(report: ProbeReport) -> str:
    """What the checks for a false result come to."""
    tried, fired = len(report.diagnostics), [flag for flag in report.diagnostics if flag.fired]
    hard = sum(flag.severity == "hard" for flag in fired)
    if hard:
        return (
            f"{hard} of {tried} checks for a false result failed. A witness stays a fact; that nothing "
            f"was found would mean nothing."
        )
    if fired:
        return f"{len(fired)} of {tried} checks for a false result noticed something, none of it serious."
    return f"{tried} checks for a false result were made; none gave a reason to doubt the attack."


def flag_sentence(flag: Diagnostic) -> str:
    return f"{flag.sentence} is {flag.number:.3g}; the threshold is {flag.threshold:.3g}."


def named(values: Sequence[str]) -> str:
    """A chain of things in the order in which a picture passes them."""
    return " then ".join(values) or "none"
