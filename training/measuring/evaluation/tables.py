"""What `robustclip evaluate` prints for people."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from training.measuring.pages.difference import decided
from training.measuring.pages.wording import attacked

Facts: TypeAlias = Mapping[str, Any]
_WIDE = 170


def print_evaluation(found: Facts) -> None:
    """Every row with the checks that contradict it, then what follows from the rows."""
    console = _console()
    flags = _flags(found.get("checks", ()))
    several = len({facts["seed"] for facts in found["results"]}) > 1
    heads = ("backbone", "data", "prompt set", "defense", "threat", "eps", *(("seed",) if several else ()))
    voted = any("abstained" in facts for facts in found["results"])
    unseen = any(facts.get("seen_labels") != facts.get("measured_labels") for facts in found["results"])
    table = Table(
        *heads,
        "accuracy",
        "95 % interval",
        "8 bit",
        "n",
        "seconds",
        "checks",
        *(("abstained",) if voted else ()),
        *(("names trained on",) if unseen else ()),
    )
    for facts in found["results"]:
        raised = flags.get(_row_of(facts), [])
        named = [_name(facts, head) for head in heads]
        interval = f"{facts['low']:.1%} - {facts['high']:.1%}"
        rest = [
            f"{facts['accuracy']:.1%}",
            interval,
            f"{facts['accuracy_8bit']:.1%}",
            str(facts["n"]),
            f"{facts['seconds']:.1f}",
        ]
        seen = f"{facts['seen_labels']} of {facts['measured_labels']}" if "seen_labels" in facts else ""
        silent = f"{facts['abstained']:.1%}" if "abstained" in facts else ""
        table.add_row(
            *named, *rest, ", ".join(raised), *((silent,) if voted else ()), *((seen,) if unseen else ())
        )
    console.print(table)
    for check in (check for check in found.get("checks", ()) if check["fired"]):
        about = f"{check['data']}, {check['prompt_set']}"
        console.print(
            f"{check['id']} {check['name']} ({about}): {check['sentence']} ({check['number']:.3g}, "
            f"threshold {check['threshold']:.3g})."
        )
    for title, names in (("over_seeds", "over seeds"), ("over_data", "over data sets")):
        _print_means(console, found.get(title, ()), names)
    _print_paired(console, found.get("paired", ()), "same pictures")
    _print_paired(console, found.get("paired_over_data", ()), "means over data sets")
    _print_headlines(console, found.get("headlines", ()))


def print_plan(cells: Sequence[Facts], summary: str) -> None:
    console = _console()
    table = Table(
        "backbone", "data", "prompt set", "defense", "threat", "eps", "seed", "n", "charged passes, at most"
    )
    for cell in cells:
        charged = "measured already" if cell["measured"] else f"{cell['charged']:,}"
        table.add_row(
            *(
                str(cell[name])
                for name in ("backbone", "data", "prompt_set", "defense", "threat", "eps", "seed", "n")
            ),
            charged,
        )
    console.print(table)
    console.print(summary)


def print_transfer(rows: Sequence[Facts]) -> None:
    """A matrix for each backbone, data set, radius and seed: a row for what pictures were made against, a
    column for what they are judged under.
    """
    console = _console()
    groups: dict[tuple[str, ...], list[Facts]] = {}
    for row in rows:
        groups.setdefault(
            tuple(str(row[name]) for name in ("backbone", "data", "split", "eps", "seed", "n")), []
        ).append(row)
    for (backbone, data, split, eps, seed, n), group in groups.items():
        names = list(dict.fromkeys(row["judged_under"] for row in group))
        table = Table(
            "made against",
            *names,
            title=f"accuracy, judged under: {backbone}, {data} {split}, {n} pictures, {eps}, seed {seed}",
        )
        for made_against in names:
            cells = {row["judged_under"]: row for row in group if row["made_against"] == made_against}
            table.add_row(made_against, *(f"{cells[name]['accuracy']:.1%}" for name in names))
        console.print(table)


def _print_means(console: Console, means: Sequence[Facts], what: str) -> None:
    if not means:
        return
    table = Table(
        "backbone",
        "data",
        "prompt set",
        "defense",
        "threat",
        "eps",
        "seeds",
        "mean",
        "95 % interval",
        "deviation",
        title=f"means {what}",
    )
    for facts in means:
        deviation = f"{facts['deviation']:.1%}" if "deviation" in facts else ""
        named = [
            _name(facts, head) for head in ("backbone", "data", "prompt set", "defense", "threat", "eps")
        ]
        table.add_row(
            *named,
            _several(facts["seeds"]),
            f"{facts['accuracy']:.1%}",
            f"{facts['low']:.1%} - {facts['high']:.1%}",
            deviation,
        )
    console.print(table)


def _print_paired(console: Console, paired: Sequence[Facts], what: str) -> None:
    if not paired:
        return
    table = Table(
        "backbone",
        "data",
        "defense",
        "threat",
        "eps",
        "a",
        "b",
        "a - b, points",
        "95 % interval",
        "says",
        title=what,
    )
    for facts in paired:
        named = [_name(facts, head) for head in ("backbone", "data", "defense", "threat", "eps", "a", "b")]
        points = f"{100 * facts['difference']:+.1f}"
        interval = f"{100 * facts['low']:+.1f} to {100 * facts['high']:+.1f}"
        table.add_row(
            *named,
            points,
            interval,
            f"{'a' if facts['low'] > 0 else 'b'} is better" if decided(facts) else "no difference",
        )
    console.print(table)


def _print_headlines(console: Console, headlines: Sequence[Facts]) -> None:
    for facts in headlines:
        about = (
            f"{facts['prompt_set']} on {facts['data']} ({facts['backbone']}, defense "
            f"{facts['defense']}, seed {facts['seed']}) at {facts['eps']}"
        )
        if facts["refused"]:
            console.print(f"inconclusive: {about}: no headline, because of {', '.join(facts['refused'])}.")
        else:
            console.print(
                f"{about}: {facts['accuracy']:.1%} of {facts['n']} not broken by T3 ({facts['low']:.1%} - "
                f"{facts['high']:.1%})."
            )


def _flags(checks: Sequence[Facts]) -> dict[tuple[str, ...], list[str]]:
    """Row -> identifiers of the checks that fired over it. A check speaks against the attack that should have
    found more: the last of its rows.
    """
    flags: dict[tuple[str, ...], list[str]] = {}
    for check in (check for check in checks if check["fired"]):
        threat, eps = check["rows"][-1]
        flags.setdefault(_row_of({**check, "threat": threat, "eps": eps}), []).append(check["id"])
    return flags


def _row_of(facts: Facts) -> tuple[str, ...]:
    return tuple(
        str(facts.get(name))
        for name in (
            "backbone",
            "data",
            "split",
            "classes",
            "among",
            "prompt_set",
            "defense",
            "seed",
            "threat",
            "eps",
        )
    )


def _name(facts: Facts, head: str) -> str:
    value = facts[head.replace(" ", "_")]
    if head == "data":
        value = _several(value) if isinstance(value, list) else value
        return f"{value} ({facts['classes']})" if "classes" in facts else value
    return attacked(facts) if head == "threat" else str(value)


def _several(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_WIDE)
