"""How strong defenses look, and how strong they are: accuracy on pictures that were attacked without the
defense, less accuracy under the worst attack on the defense itself.

The same worst attack is compared with the worst attack on no defense at all, on the same pictures.

The worst of several attacks is taken picture by picture, except where the chain is random. Such a chain is
judged by draws, and fewer pictures stand before several juries than before one by luck alone. There the worst
is the one attack that leaves least, on both sides. T3 is the worst of several juries itself and is left out.

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

AWARE = ("T2", "T3", "black-box")  # attacks that know the defense
SEVERAL_JURIES = ("T3",)
_CONDITION = ("backbone", "data", "split", "classes", "among", "eps", "seed")


def illusions(rows: Sequence[Row]) -> list[Illusion]:
    """A line for each prompt set behind each defense that was measured under `static` and under an attack
    that knows the defense, on the same pictures at the same radius.

    `difference`: static - worst, paired; `only_looks_strong` where it is above 0 and decided. `gain`: worst -
    what the same attacks leave of the undefended classifier, paired; None where nobody measured that.
    `unequal`: effort that differs between both sides. `holds`: "more" than no defense where the gain says so
    and the defense was attacked at least as hard; "less" where the gain says so and the defense was attacked
    no harder; else None.
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

    Draws of a random chain do not make up for fewer steps or queries. A chain that is not random counts as
    attacked with the level's own draws: a random chain was attacked as hard only with at least so many.
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
    """Which pictures [n] all of these attacks left right, or `singly` the one that left least; and which
    attacks these were.
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
