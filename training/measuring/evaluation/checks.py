"""Masking checks over measured rows, and the headlines they allow. What a stronger attacker finds less of is
a sign of a blind attack, not of safety.

Names are those of `robustclip/sanity/` and ROBUSTNESS.md section 3; tolerances are Wilson half-widths
(METHODS 8.5). Only T3 makes a headline, and none that a hard check contradicts: such a cell is inconclusive.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from robustclip.sanity.symptoms import SYMPTOMS, Diagnostic, Symptom
from robustclip.threat import parse_radius
from training.measuring.evaluation.question import effort_of
from training.threats import THREAT_LEVELS
from training.threats.base import threat_level

Facts: TypeAlias = Mapping[str, Any]

SUBJECT = ("backbone", "data", "split", "classes", "among", "method", "prompt_set", "defense", "seed")
LARGE_RADIUS, LEFT_STANDING = 64 / 255, 0.05  # at that radius nothing may stand but what chance leaves
NOISE_SHARE = 0.01
HEADLINE = "T3"
_M15 = Symptom(
    id="M15",
    name="stronger finds less",
    severity="hard",
    threshold=0.0,
    sentence="accuracy under the stronger attack less that under the weaker one, or on untouched pictures",
    advice="Believe the weaker attack; find out where the stronger one lost its way.",
)
_SYMPTOMS = {symptom.id: symptom for symptom in (*SYMPTOMS, _M15)}


class Check(NamedTuple):
    """A check of one subject: which of its rows it looked at, as (threat, eps), and what it found."""

    subject: dict[str, Any]
    rows: tuple[tuple[str, str], ...]
    found: Diagnostic

    def as_json(self) -> dict[str, Any]:
        return {
            **self.subject,
            "rows": [list(row) for row in self.rows],
            **self.found.model_dump(mode="json"),
        }


def masking_checks(results: Sequence[Facts]) -> list[Check]:
    """All checks that the rows allow, subject by subject; one that needs a level nobody measured is not
    there.
    """
    groups: dict[tuple[str, ...], list[Facts]] = {}
    for facts in results:
        groups.setdefault(tuple(str(facts.get(name)) for name in SUBJECT), []).append(facts)
    return [check for group in groups.values() for check in _of_subject(group)]


def headlines(results: Sequence[Facts], checks: Sequence[Check]) -> list[dict[str, Any]]:
    """A headline for each T3 row: its accuracy, or under `refused` the identifiers of the hard checks that
    forbid one.
    """
    found: list[dict[str, Any]] = []
    for facts in results:
        if facts["threat"] == HEADLINE:
            subject = _subject(facts)
            refused = sorted(
                {
                    check.found.id
                    for check in fired(checks)
                    if check.subject == subject and _concerns(check, facts["eps"])
                }
            )
            share = (
                {"accuracy": None, "low": None, "high": None}
                if refused
                else {name: facts[name] for name in ("accuracy", "low", "high")}
            )
            found.append({**subject, "eps": facts["eps"], "n": facts["n"], **share, "refused": refused})
    return found


def fired(checks: Sequence[Check], *, severity: str = "hard") -> list[Check]:
    """Those that forbid a headline."""
    return [check for check in checks if check.found.fired and check.found.severity == severity]


def _concerns(check: Check, eps: str) -> bool:
    return any(row_eps == eps for _, row_eps in check.rows)


def _of_subject(group: Sequence[Facts]) -> Iterator[Check]:
    at = {
        (facts["threat"], facts["eps"]): facts for facts in sorted(group, key=_effort)
    }  # of several the most telling, which comes last
    radii = sorted({eps for threat, eps in at if threat != "clean"}, key=parse_radius)
    clean = {facts["n"]: facts for facts in group if facts["threat"] == "clean"}
    for eps in radii:
        full, strongest = at.get(("T2", eps)), at.get((HEADLINE, eps))
        for facts in (facts for (_, radius), facts in at.items() if radius == eps):
            if facts["n"] in clean:
                yield from _order(
                    "M15",
                    facts,
                    clean[facts["n"]],
                    f"{facts['threat']} leaves more right than the untouched pictures are",
                )
        for identifier, blind in (
            (identifier, at[threat, eps])
            for threat in THREAT_LEVELS
            if (threat, eps) in at and (identifier := threat_level(threat).blind)
        ):
            for aware in (facts for facts in (full, strongest) if facts is not None):
                sentence = f"{aware['threat']}, which knows more, leaves more standing than {blind['threat']}"
                yield from _order(identifier, aware, blind, sentence)
        if full is not None and strongest is not None:
            yield from _order("M15", strongest, full, "T3 leaves more standing than T2, which it contains")
        if strongest is not None:
            yield from _of_ensemble(strongest)
        for facts in (
            facts for facts in (full, strongest) if facts is not None and parse_radius(eps) >= LARGE_RADIUS
        ):
            number = facts["accuracy"]
            sentence = f"share that {facts['threat']} leaves standing at {eps}, where nothing can"
            yield _check("M13", [facts], number > LEFT_STANDING, number, LEFT_STANDING, sentence)
    for threat in dict.fromkeys(threat for threat, _ in at if threat != "clean"):
        for smaller, larger in itertools.pairwise([at[threat, eps] for eps in radii if (threat, eps) in at]):
            sentence = f"{threat} leaves more standing at {larger['eps']} than at {smaller['eps']}"
            yield from _order("M8", larger, smaller, sentence)
    for eps in radii:
        alike: dict[tuple[int, ...], dict[int, Facts]] = {}  # but for the steps
        for facts in (facts for facts in group if (facts["threat"], facts["eps"]) == ("T2", eps)):
            steps, *others = effort_of(facts).values()
            alike.setdefault((facts["n"], *others), {})[steps] = facts
        for by_steps in alike.values():
            for few, many in itertools.pairwise(sorted(by_steps)):
                yield from _order(
                    "M8",
                    by_steps[many],
                    by_steps[few],
                    f"T2 of {many} steps leaves more standing than of {few}",
                )


def _of_ensemble(strongest: Facts) -> Iterator[Check]:
    """What noise and Square broke although T2 (and all gradients, for Square) had failed."""
    fell: Mapping[str, int] | None = strongest.get("fell_to")
    if not fell:
        return
    faced = sum(fell.values()) + round(strongest["accuracy"] * strongest["n"])
    by_noise = fell.get("noise", 0) / max(faced, 1)
    yield _check(
        "M7",
        [strongest],
        by_noise > NOISE_SHARE,
        by_noise,
        NOISE_SHARE,
        "share of what T2 left standing that noise breaks",
    )
    by_square, tolerance = fell.get("square", 0) / strongest["n"], _half_width(strongest)
    sentence = "share of pictures that Square breaks after every gradient failed"
    yield _check("M6", [strongest], by_square > tolerance, by_square, tolerance, sentence)


def _order(id: str, stronger: Facts, weaker: Facts, sentence: str) -> Iterator[Check]:
    """Fires when the stronger attack leaves more right than the weaker one, beyond the Wilson half-width.
    Silent about rows of other pictures.
    """
    if stronger["n"] != weaker["n"]:  # the same number are the same pictures, those of --limit
        return
    excess, tolerance = (
        stronger["accuracy"] - weaker["accuracy"],
        max(_half_width(stronger), _half_width(weaker)),
    )
    yield _check(id, [weaker, stronger], excess > tolerance, excess, tolerance, sentence)


def _effort(facts: Facts) -> tuple[int, ...]:
    """Rows of the same level may differ in pictures and in what the attack took: a row names only what is not
    the level's own.
    """
    return (facts["n"], *effort_of(facts).values())


def _check(
    id: str, rows: Sequence[Facts], happened: bool, number: float, threshold: float, sentence: str
) -> Check:
    found = replace(_SYMPTOMS[id], threshold=threshold, sentence=sentence).seen(number, happened)
    return Check(_subject(rows[0]), tuple((facts["threat"], facts["eps"]) for facts in rows), found)


def _subject(facts: Facts) -> dict[str, Any]:
    return {name: facts[name] for name in SUBJECT if name in facts}


def _half_width(facts: Facts) -> float:
    return (facts["high"] - facts["low"]) / 2
