"""What defenses only seem to hold: accuracy on pictures that were made without the defense, less that under the worst attack on the defense itself.

A report on a defended classifier shows both side by side (ROBUSTNESS 1); this is their difference on the same pictures, and what is left of the
defense against the worst attack on no defense at all.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from robustclip.measure import accuracy, mcnemar, paired_difference
from training.evaluation.question import NO_DEFENSE
from training.evaluation.rows import Row
from training.pages.difference import decided

Facts: TypeAlias = dict[str, Any]

AWARE = ("T2", "T3", "black-box")  # attacks on the deployed chain
_CONDITION = ("backbone", "data", "split", "classes", "among", "eps", "seed")


def illusions(rows: Sequence[Row]) -> list[Facts]:
    """A line for each prompt set behind each defense of which there are `static` and an aware attack on the same pictures at the same radius.

    `difference`: static - worst, paired; `only_looks_strong` where it is above 0 and decided. `gain`: worst - what the same attacks leave of the
    undefended classifier, paired; None where nobody measured that.
    """
    levels: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        levels.setdefault(_key(row, row.facts["defense"]), {}).setdefault(row.facts["threat"], []).append(row)
    found: list[Facts] = []
    for row in rows:
        behind = levels[_key(row, row.facts["defense"])]
        attacks = [threat for threat in AWARE if threat in behind]
        if row.facts["threat"] != "static" or row.facts["defense"] == NO_DEFENSE or not attacks:
            continue
        left = _worst(behind, attacks)
        bare = levels.get(_key(row, NO_DEFENSE), {})
        gain = _difference(left, _worst(bare, attacks)) if all(threat in bare for threat in attacks) else None
        share, gap = accuracy(left), _difference(row.correct, left)
        subject = {name: row.facts[name] for name in ("method", "prompt_set", "defense", *_CONDITION, "n") if name in row.facts}
        strong = {"only_looks_strong": gap["difference"] > 0 and decided(gap), "gain": gain}
        worst = {"value": share.value, "low": share.low, "high": share.high, "of": attacks}
        found.append({**subject, "static": row.facts["accuracy"], "worst": worst, **gap, **strong})
    return found


def _key(row: Row, defense: str) -> tuple[Any, ...]:
    return (row.asked, str(row.folder), row.pictures, defense, *(row.facts.get(name) for name in _CONDITION))


def _worst(levels: Mapping[str, Sequence[Row]], attacks: Sequence[str]) -> Tensor:
    """[n] what every one of these attacks left right."""
    first, *others = [row.correct for threat in attacks for row in levels[threat]]
    for correct in others:
        first = first & correct
    return first


def _difference(first: Tensor, second: Tensor) -> Facts:
    interval = paired_difference(first, second)
    return {"difference": interval.value, "low": interval.low, "high": interval.high, "mcnemar": mcnemar(first, second)}
