"""What defenses only seem to hold: accuracy on pictures that were made without the defense, less that under
the worst attack on the defense itself.

Beside it stands what the defense leaves against the worst attack, less what no defense at all leaves, on the
same pictures.

The worst of several attacks is taken picture by picture, except where the chain is random: such a chain is
judged by draws, and what stands before several such juries is less than what stands before one, by luck
alone. There the worst is the one attack that leaves least, on both sides, and T3, which is the worst of
several juries itself, is none of them.

Chains that differ in nothing but what attackers get for a gradient (`backward`) are one defense, attacked in
several ways.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from torch import Tensor

from robustclip.defenses import parse_defenses
from robustclip.measuring import accuracy, mcnemar, paired_difference
from training.measuring.evaluation.question import NO_DEFENSE, effort_of
from training.measuring.evaluation.rows import Row
from training.measuring.schema.base import Difference
from training.measuring.schema.evaluation import Illusion, Unequal

Levels: TypeAlias = Mapping[str, Sequence[Row]]

AWARE = ("T2", "T3", "black-box")  # attacks on the deployed chain
SEVERAL_JURIES = ("T3",)
_CONDITION = ("backbone", "data", "split", "classes", "among", "eps", "seed")


def illusions(rows: Sequence[Row]) -> list[Illusion]:
    """A line for each prompt set behind each defense of which there are `static` and an aware attack on the
    same pictures at the same radius.

    `difference`: static - worst, paired; `only_looks_strong` where it is above 0 and decided. `gain`: worst -
    what the same attacks leave of the undefended classifier, paired; None where nobody measured that.
    `unequal`: what either side was attacked harder with. `holds`: "more" than no defense where the gain says
    so and the defense was attacked at least as hard, "less" where it says so and it was attacked no harder,
    else None.
    """
    levels: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        behind = levels.setdefault(_key(row, served(row.result.defense)), {})
        behind.setdefault(row.result.threat, []).append(row)
    found: list[Illusion] = []
    for row in rows:
        result = row.result
        behind = levels[_key(row, served(result.defense))]
        random = any(link.randomized for link in parse_defenses(result.defense))
        attacks = [
            threat for threat in AWARE if threat in behind and not (random and threat in SEVERAL_JURIES)
        ]
        if result.threat != "static" or result.defense == NO_DEFENSE or not attacks:
            continue
        of, left = _worst(behind, attacks, singly=random)
        share, gap = accuracy(left), _difference(row.correct, left)
        bare = levels.get(_key(row, served(NO_DEFENSE)), {})
        values = {
            **result.part("method", "prompt_set", "defense", *_CONDITION, "n"),
            "static": result.accuracy,
            "random": random,
            "worst": {**share._asdict(), "of": of},
            **gap.as_json(),
            "only_looks_strong": gap.difference > 0 and gap.decided,
            **_compared(left, behind, bare, attacks, singly=random),
        }
        found.append(Illusion.model_validate(values))
    return found


@lru_cache
def served(chain: str) -> str:
    """What a chain does to pictures, whatever gradient it declares."""
    return "".join(part.model_dump_json(exclude={"backward"}) for part in parse_defenses(chain))


def _compared(
    left: Tensor, behind: Levels, bare: Levels, attacks: Sequence[str], *, singly: bool
) -> dict[str, Any]:
    """What is left behind a defense beside what is left without one."""
    if any(threat not in bare for threat in attacks):
        return {"gain": None, "unequal": [], "holds": None}
    gain = _difference(left, _worst(bare, attacks, singly=singly)[1])
    unequal = [part for threat in attacks for part in _unequal(behind[threat], bare[threat])]
    holds = None
    if gain.decided:
        holds = "more" if gain.difference > 0 else "less"
        if any((part.taken < part.against) == (holds == "more") for part in unequal):
            holds = None
    return {"gain": gain, "unequal": unequal, "holds": holds}


def _unequal(behind: Sequence[Row], bare: Sequence[Row]) -> list[Unequal]:
    """Numbers in which the hardest attack on a defense differs from that on none.

    Draws of a random chain are no steps and no queries: they do not make up for fewer of those. What has no
    draws counts as attacked with the level's own, so that a random chain was attacked as hard only if it was
    with at least these.
    """
    taken, against = (
        max((effort_of(row.result) for row in rows), key=lambda effort: [*effort.values()])
        for rows in (behind, bare)
    )
    threat = behind[0].result.threat
    return [
        Unequal(threat=threat, what=name, taken=taken[name], against=against[name])
        for name in taken
        if taken[name] != against[name]
    ]


def _key(row: Row, defense: str) -> tuple[Any, ...]:
    return (row.asked, str(row.folder), row.pictures, defense, *row.result.key(*_CONDITION))


def _worst(levels: Levels, attacks: Sequence[str], *, singly: bool) -> tuple[list[str], Tensor]:
    """[n] what every one of these attacks left right, or what the one did that left least; and which they
    were.
    """
    rows = [row for threat in attacks for row in levels[threat]]
    if singly:
        least = min(rows, key=lambda row: int(row.correct.sum()))
        return [least.result.threat], least.correct
    first, *others = [row.correct for row in rows]
    for correct in others:
        first = first & correct
    return [*attacks], first


def _difference(first: Tensor, second: Tensor) -> Difference:
    value, low, high = paired_difference(first, second)
    return Difference(difference=value, low=low, high=high, mcnemar=mcnemar(first, second))
