"""Masking checks over measured rows, the headlines that they allow, and the summary of all that follows from
rows. Where a stronger attacker breaks fewer pictures, the attack is blind (Athalye et al. 2018, arXiv
1802.00420, section 3.1): that is no safety.

Identifiers and names are those of `robustclip/sanity/`. Two accuracies may differ by the half-width of their
Wilson intervals. Only T3 makes a headline; where a hard check contradicts it, the cell is inconclusive.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from robustclip.sanity.symptoms import SYMPTOMS, Symptom
from robustclip.threat import parse_radius
from training.measuring.evaluation.comparison import compare, over_data, over_seeds
from training.measuring.evaluation.question import effort_of
from training.measuring.evaluation.rows import Row
from training.measuring.schema.base import grouped
from training.measuring.schema.evaluation import SUBJECT, Check, Evaluation, Headline, Result
from training.threats import THREAT_LEVELS
from training.threats.base import threat_level

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


def masking_checks(results: Sequence[Result]) -> list[Check]:
    """All checks that the rows allow, subject by subject: none that needs a level which was not measured."""
    groups = grouped(results, lambda result: result.key(*SUBJECT))
    return [check for group in groups.values() for check in _of_subject(group)]


def headlines(results: Sequence[Result], checks: Sequence[Check]) -> list[Headline]:
    """A headline for each T3 row: its accuracy, or under `refused` the identifiers of the hard checks that
    forbid one.
    """
    found: list[Headline] = []
    for result in (result for result in results if result.threat == HEADLINE):
        against = [check for check in fired(checks) if check.key(*SUBJECT) == result.key(*SUBJECT)]
        refused = sorted({check.id for check in against if result.eps in (eps for _, eps in check.rows)})
        share = dict.fromkeys(("accuracy", "low", "high")) if refused else {}
        values = result.part(*SUBJECT, "eps", "n", "accuracy", "low", "high")
        found.append(Headline.model_validate({**values, **share, "refused": refused}))
    return found


def fired(checks: Sequence[Check], *, severity: str = "hard") -> list[Check]:
    """Those that forbid a headline."""
    return [check for check in checks if check.fired and check.severity == severity]


def _of_subject(group: Sequence[Result]) -> Iterator[Check]:
    at = {
        (result.threat, result.eps): result for result in sorted(group, key=_effort)
    }  # of several the most telling, which comes last
    radii = sorted({eps for threat, eps in at if threat != "clean"}, key=parse_radius)
    clean = {result.n: result for result in group if result.threat == "clean"}
    for eps in radii:
        full, strongest = at.get(("T2", eps)), at.get((HEADLINE, eps))
        for result in (result for (_, radius), result in at.items() if radius == eps):
            if result.n in clean:
                yield from _order(
                    "M15",
                    result,
                    clean[result.n],
                    f"{result.threat} leaves more right than the untouched pictures are",
                )
        for identifier, blind in (
            (identifier, at[threat, eps])
            for threat in THREAT_LEVELS
            if (threat, eps) in at and (identifier := threat_level(threat).blind)
        ):
            for aware in (result for result in (full, strongest) if result is not None):
                sentence = f"{aware.threat}, which knows more, leaves more standing than {blind.threat}"
                yield from _order(identifier, aware, blind, sentence)
        if full is not None and strongest is not None:
            yield from _order("M15", strongest, full, "T3 leaves more standing than T2, which it contains")
        if strongest is not None:
            yield from _of_ensemble(strongest)
        for result in (
            result for result in (full, strongest) if result is not None and parse_radius(eps) >= LARGE_RADIUS
        ):
            sentence = f"share that {result.threat} leaves standing at {eps}, where nothing can"
            yield _check("M13", [result], result.accuracy, LEFT_STANDING, sentence)
    for threat in dict.fromkeys(threat for threat, _ in at if threat != "clean"):
        for smaller, larger in itertools.pairwise([at[threat, eps] for eps in radii if (threat, eps) in at]):
            sentence = f"{threat} leaves more standing at {larger.eps} than at {smaller.eps}"
            yield from _order("M8", larger, smaller, sentence)
    for eps in radii:
        alike: dict[tuple[int, ...], dict[int, Result]] = {}  # but for the steps
        for result in (result for result in group if (result.threat, result.eps) == ("T2", eps)):
            steps, *others = effort_of(result).values()
            alike.setdefault((result.n, *others), {})[steps] = result
        for by_steps in alike.values():
            for few, many in itertools.pairwise(sorted(by_steps)):
                yield from _order(
                    "M8",
                    by_steps[many],
                    by_steps[few],
                    f"T2 of {many} steps leaves more standing than of {few}",
                )


def _of_ensemble(strongest: Result) -> Iterator[Check]:
    """What noise and Square broke although T2 (and all gradients, for Square) had failed."""
    fell = strongest.fell_to
    if not fell:
        return
    faced = sum(fell.values()) + round(strongest.accuracy * strongest.n)
    by_noise = fell.get("noise", 0) / max(faced, 1)
    sentence = "share of what T2 left standing that noise breaks"
    yield _check("M7", [strongest], by_noise, NOISE_SHARE, sentence)
    sentence = "share of pictures that Square breaks after every gradient failed"
    by_square = fell.get("square", 0) / strongest.n
    yield _check("M6", [strongest], by_square, _half_width(strongest), sentence)


def _order(id: str, stronger: Result, weaker: Result, sentence: str) -> Iterator[Check]:
    """Fires if the stronger attack leaves more right than the weaker one by more than the wider half-width.
    Silent about rows of other pictures.
    """
    if stronger.n != weaker.n:  # the same number are the same pictures, those of --limit
        return
    excess, tolerance = stronger.accuracy - weaker.accuracy, max(_half_width(stronger), _half_width(weaker))
    yield _check(id, [weaker, stronger], excess, tolerance, sentence)


def _effort(result: Result) -> tuple[int, ...]:
    """Pictures, then what the attack took: rows of the same level may differ in both."""
    return (result.n, *effort_of(result).values())


def _check(id: str, rows: Sequence[Result], number: float, threshold: float, sentence: str) -> Check:
    """Fires if the number is above the threshold."""
    found = replace(_SYMPTOMS[id], threshold=threshold, sentence=sentence).seen(number, number > threshold)
    about = {**rows[0].part(*SUBJECT), "rows": [(row.threat, row.eps) for row in rows]}
    return Check.model_validate({**about, **found.model_dump(mode="json")})


def _half_width(result: Result) -> float:
    return (result.high - result.low) / 2


def summary(rows: Sequence[Row], *, against: Collection[str] = (), per_picture: bool = False) -> Evaluation:
    """`against`: prompt sets, as they were asked for, that the others are compared with; none: all with all.
    `per_picture`: each row names its pictures, and which of them were right.
    """
    results = [_per_picture(row) if per_picture else row.result for row in rows]
    checks = masking_checks(results)
    wide = over_data(rows, against=against)
    found = {
        "paired": compare(rows, against=against),
        "over_seeds": over_seeds(rows),
        "over_data": wide.means,
        "paired_over_data": wide.paired,
        "left_out_over_data": wide.left_out,
        "checks": checks,
        "headlines": headlines(results, checks),
    }
    present = {name: lines for name, lines in found.items() if lines}
    return Evaluation.model_validate({"results": results, **present})


def _per_picture(row: Row) -> Result:
    own = {"pictures": row.pictures, "correct": row.correct.tolist()}
    return Result.model_validate({**row.result.as_json(), **own})
