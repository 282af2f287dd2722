"""Tables of defenses for the results page: a line a defense, a column a threat level, and in words which of
them only look strong.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from robustclip.reports.charts import Curve, chart_file
from training.measuring.pages.markdown import line, table
from training.measuring.pages.wording import UNUSUAL, accuracy, data_of, difference, effort, rank

Facts: TypeAlias = dict[str, Any]
Key = TypeVar("Key")


def defense_tables(content: Facts, *, chart: str) -> list[str]:
    """The lines of all tables: of each prompt set, of what the prompt sets differ in, and of how many draws a
    gradient needs, with its `chart`.
    """
    names = {chain: name for name, chain in content["defenses"].items()}
    results: list[Facts] = content["results"]
    converging = _converging(results)
    rows = [row for row in results if row not in converging]
    lines: list[str] = []
    for heading, group in _by(rows, _heading).items():
        seen = [seen for seen in content.get("illusions", ()) if _heading(seen) == heading]
        lines += [f"### {heading}", "", *_levels(group, seen, names), "", *_sentences(seen, names), ""]
    for heading, group in _by(content.get("paired", ()), _pair).items():
        lines += [f"### {heading}", "", *_paired(group, names), ""]
    return [
        *lines,
        *(
            [*_draws(converging, names), f"![Pictures left standing over draws]({chart})", ""]
            if converging
            else []
        ),
    ]


def draws_chart(content: Facts) -> str:
    """How many pictures are left standing, over the draws behind a gradient, as an SVG file; nothing where no
    draws were varied.
    """
    names = {chain: name for name, chain in content["defenses"].items()}
    curves = [
        Curve(
            f"{_name(group[0]['defense'], names)}, {_subject(group[0])}, {group[0]['n']} pictures",
            sorted((_draws_of(row), round(row["accuracy"] * row["n"])) for row in group),
        )
        for group in _by(_converging(content["results"]), _without_draws).values()
    ]
    return chart_file("Pictures left standing", curves, across="draws behind a gradient") if curves else ""


def _levels(rows: Sequence[Facts], seen: Sequence[Facts], names: Mapping[str, str]) -> list[str]:
    columns = {name: _shared(group) for name, group in _by(_ordered(rows), _column).items()}
    told = {_line_of(facts): facts for facts in seen}
    heads = [", ".join(filter(None, [name, effort(shared)])) for name, shared in columns.items()]
    lines = table(
        [
            "defense",
            "pictures",
            *heads,
            "static - worst",
            "only looks strong",
            "worst - worst without a defense",
        ]
    )
    for row_of, group in sorted(_by(rows, _line_of).items(), key=lambda found: _place(*found[0], names)):
        cells = {
            _column(row): "; ".join(filter(None, [accuracy(row), effort(row, without=columns[_column(row)])]))
            for row in group
        }
        facts = told.get(row_of)
        verdict = ["", "", ""] if facts is None else _verdict(facts)
        lines.append(
            line(
                [
                    _name(row_of[0], names),
                    str(row_of[1]),
                    *(cells.get(column, "") for column in columns),
                    *verdict,
                ]
            )
        )
    return lines


def _sentences(seen: Sequence[Facts], names: Mapping[str, str]) -> Iterator[str]:
    """Which defenses only look strong, and which hold anything, by what the numbers decide."""
    if not seen:
        return
    strong = [_name(facts["defense"], names) for facts in seen if facts["only_looks_strong"]]
    yield (
        f"- **Only look strong**: {', '.join(strong)}."
        if strong
        else "- None of them is shown to look stronger than it is."
    )
    compared = [facts for facts in seen if facts["gain"] is not None]
    for holds in ("more", "less") if compared else ():
        shown = [_name(facts["defense"], names) for facts in compared if facts["holds"] == holds]
        yield (
            f"- Hold {holds} than no defense does, each under its worst attack: "
            f"{', '.join(shown) or 'none is shown to'}."
        )
    for harder, words, claim in ((False, "less hard", "more"), (True, "harder", "less")):
        found = [
            (facts, [part for part in facts["unequal"] if (part["taken"] > part["against"]) is harder])
            for facts in compared
        ]
        unlike = [
            f"{_name(facts['defense'], names)} ({', '.join(map(_unlike, parts))})"
            for facts, parts in found
            if parts
        ]
        if unlike:
            yield (
                f"- Attacked {words} than no defense was, so that none of these is said to hold {claim}: "
                f"{'; '.join(unlike)}."
            )
    if random := [_name(facts["defense"], names) for facts in seen if facts["random"]]:
        yield (
            f"- Random, so that every judging has its luck: {', '.join(random)}. Their worst is the one "
            f"attack that leaves least, also where no "
            "defense is compared with them (T3 is judged several times and does not count). Of the others "
            "it is what all attacks together leave."
        )


def _paired(rows: Sequence[Facts], names: Mapping[str, str]) -> list[str]:
    columns = list(dict.fromkeys(map(_column, _ordered(rows))))
    lines = table(["defense", "pictures", *columns])
    for own, group in sorted(_by(rows, _line_of).items(), key=lambda found: _place(*found[0], names)):
        cells = {_column(row): difference(row) for row in group}
        lines.append(
            line([_name(own[0], names), str(own[1]), *(cells.get(column, "") for column in columns)])
        )
    return lines


def _draws(rows: Sequence[Facts], names: Mapping[str, str]) -> list[str]:
    """The same pictures, attacked by the mean of few draws and of many."""
    columns = sorted(set(map(_draws_of, rows)))
    lines = [
        "### How many draws a gradient needs",
        "",
        *table(["left standing", *(f"{count} draw{'s' if count > 1 else ''}" for count in columns)]),
    ]
    for about, group in _by(rows, _without_draws).items():
        cells = {_draws_of(row): accuracy(row) for row in group}
        lines.append(
            line(
                [
                    f"{_name(group[0]['defense'], names)}, {', '.join(about[1:])}",
                    *(cells.get(count, "") for count in columns),
                ]
            )
        )
    return [*lines, ""]


def _converging(rows: Sequence[Facts]) -> list[Facts]:
    """Rows that differ from another in nothing but their draws."""
    drawn = _by([row for row in rows if row["attack"] and "draws" in row["attack"]], _without_draws).values()
    return [row for group in drawn if len(set(map(_draws_of, group))) > 1 for row in group]


def _by(rows: Iterable[Facts], key: Callable[[Facts], Key]) -> dict[Key, list[Facts]]:
    """Rows that have a key in common, in the order in which it first appears."""
    groups: dict[Key, list[Facts]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _ordered(rows: Iterable[Facts]) -> list[Facts]:
    return sorted(rows, key=rank)


def _place(chain: str, pictures: int, names: Mapping[str, str]) -> tuple[int, int]:
    """Where a line stands: as declared, the one on more pictures first."""
    return [*names].index(chain), -pictures


def _heading(row: Facts) -> str:
    return f"{_subject(row)}, {data_of(row)}, seed {row['seed']}"


def _subject(row: Facts) -> str:
    return row.get("method", row["prompt_set"])


def _pair(row: Facts) -> str:
    return f"{row['a'].split('@')[0]} - {row['b'].split('@')[0]}, {data_of(row)}"


def _shared(rows: Sequence[Facts]) -> Facts:
    """What all attacks of a column took alike, other than the level's own."""
    return {
        name: rows[0][name]
        for name in UNUSUAL
        if all(row.get(name) == rows[0].get(name) for row in rows) and name in rows[0]
    }


def _line_of(row: Facts) -> tuple[str, int]:
    return row["defense"], row["n"]


def _column(row: Facts) -> str:
    return row["threat"] if row["threat"] == "clean" else f"{row['threat']} {row['eps']}"


def _without_draws(row: Facts) -> tuple[str, ...]:
    """What a row is about, its first word the chain."""
    taken = effort(row, without=("draws",))
    return (row["defense"], _heading(row), *filter(None, [_column(row), taken]), f"{row['n']} pictures")


def _draws_of(row: Facts) -> int:
    return row["attack"]["draws"]


def _verdict(facts: Facts) -> list[str]:
    return [
        difference(facts),
        "yes" if facts["only_looks_strong"] else "",
        "" if facts["gain"] is None else _gain(facts),
    ]


def _gain(facts: Facts) -> str:
    sides = {part["taken"] > part["against"] for part in facts["unequal"]}
    words = [f"attacked {'harder' if harder else 'less hard'}" for harder in sorted(sides)]
    return "; ".join(
        [difference({**facts["gain"], "n": facts["n"]}, claimed=facts["holds"] is not None), *words]
    )


def _unlike(part: Facts) -> str:
    """What one side was attacked with more of. No defense has draws: they are held against the level's
    own.
    """
    own = "the level's own " if part["what"] == "draws" else ""
    return f"{part['threat']}: {effort({part['what']: part['taken']})} against {own}{part['against']}"


def _name(chain: str, names: Mapping[str, str]) -> str:
    return names.get(chain, chain)
