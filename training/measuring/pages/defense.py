"""Tables of defenses for the results page: a line for each defense, a column for each threat level, and in
words which of them only look strong.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from robustclip.reports.charts import Curve, chart_file
from training.measuring.pages.wording import accuracy, difference, effort, grid, line, table
from training.measuring.schema.base import grouped
from training.measuring.schema.evaluation import Condition, Illusion, Paired, Result, Subject, Unequal
from training.measuring.schema.files import TableFile

Row = TypeVar("Row", Result, Paired)


def defense_tables(content: TableFile, *, chart: str) -> list[str]:
    """The lines of all tables: one for each prompt set, one for each pair of them, and how many draws a
    gradient needs, with its `chart`.
    """
    name = _names(content)
    converging = _converging(content.results)
    rows = [row for row in content.results if row not in converging]
    lines: list[str] = []
    for heading, group in grouped(rows, _heading).items():
        seen = [seen for seen in content.illusions if _heading(seen) == heading]
        lines += [f"### {heading}", "", *_levels(group, seen, content), "", *_sentences(seen, name), ""]
    for heading, pairs in grouped(content.paired, lambda pair: f"{pair.sets}, {pair.data_words}").items():
        lines += [f"### {heading}", "", *_paired(pairs, content), ""]
    if converging:
        lines += [*_draws(converging, name), f"![Pictures left standing over draws]({chart})", ""]
    return lines


def draws_chart(content: TableFile) -> str:
    """How many pictures are left standing, over the draws behind a gradient, as an SVG file; nothing where no
    draws were varied.
    """
    name = _names(content)
    curves = [
        Curve(
            f"{name(group[0].defense)}, {group[0].label}, {group[0].n} pictures",
            sorted((row.averaged, round(row.accuracy * row.n)) for row in group),
        )
        for group in grouped(_converging(content.results), _without_draws).values()
    ]
    return chart_file("Pictures left standing", curves, across="draws behind a gradient") if curves else ""


def _names(content: TableFile) -> Callable[[str], str]:
    """The name that a table gives to a chain."""
    names = {chain: name for name, chain in content.defenses.items()}
    return lambda chain: names.get(chain, chain)


def _levels(rows: Sequence[Result], seen: Sequence[Illusion], content: TableFile) -> list[str]:
    columns = {name: _shared(group) for name, group in grouped(_ordered(rows), _column).items()}
    told = {(illusion.defense, illusion.n): illusion for illusion in seen}
    heads = [", ".join(filter(None, [name, effort(shared)])) for name, shared in columns.items()]
    verdicts = ["static - worst", "only looks strong", "worst - worst without a defense"]
    lines = table(["defense", "pictures", *heads, *verdicts])
    for place, group in _lines(rows, content).items():
        cells = {
            _column(row): "; ".join(
                filter(None, [accuracy(row), effort(row.unusual, without=columns[_column(row)])])
            )
            for row in group
        }
        illusion = told.get((group[0].defense, group[0].n))
        verdict = ["", "", ""] if illusion is None else _verdict(illusion)
        lines.append(line([*place, *(cells.get(column, "") for column in columns), *verdict]))
    return lines


def _sentences(seen: Sequence[Illusion], name: Callable[[str], str]) -> Iterator[str]:
    """Which defenses only look strong, and which hold anything, by what the numbers decide."""
    if not seen:
        return
    strong = [name(illusion.defense) for illusion in seen if illusion.only_looks_strong]
    yield (
        f"- **Only look strong**: {', '.join(strong)}."
        if strong
        else "- None of them is shown to look stronger than it is."
    )
    compared = [illusion for illusion in seen if illusion.gain is not None]
    for holds in ("more", "less") if compared else ():
        shown = [name(illusion.defense) for illusion in compared if illusion.holds == holds]
        yield (
            f"- Hold {holds} than no defense does, each under its worst attack: "
            f"{', '.join(shown) or 'none is shown to'}."
        )
    for harder, words, claim in ((False, "less hard", "more"), (True, "harder", "less")):
        unlike: list[str] = []
        for illusion in compared:
            parts = [part for part in illusion.unequal if (part.taken > part.against) is harder]
            unlike += [f"{name(illusion.defense)} ({', '.join(map(_unlike, parts))})"] if parts else []
        if unlike:
            yield (
                f"- Attacked {words} than no defense was, so that none of these is said to hold {claim}: "
                f"{'; '.join(unlike)}."
            )
    if random := [name(illusion.defense) for illusion in seen if illusion.random]:
        yield (
            f"- Random, so that every judging has its luck: {', '.join(random)}. Their worst is the one "
            f"attack that leaves least, also where no "
            "defense is compared with them (T3 is judged several times and does not count). Of the others "
            "it is what all attacks together leave."
        )


def _paired(pairs: Sequence[Paired], content: TableFile) -> list[str]:
    columns = list(dict.fromkeys(map(_column, _ordered(pairs))))
    lines = table(["defense", "pictures", *columns])
    for place, group in _lines(pairs, content).items():
        cells = {_column(pair): difference(pair, pair) for pair in group}
        lines.append(line([*place, *(cells.get(column, "") for column in columns)]))
    return lines


def _draws(rows: Sequence[Result], name: Callable[[str], str]) -> list[str]:
    """The same pictures, attacked by the mean of few draws and of many."""
    columns = sorted({row.averaged for row in rows})
    heads = ["left standing", *(f"{count} draw{'s' if count > 1 else ''}" for count in columns)]
    cells = {
        (", ".join([name(row.defense), *_without_draws(row)[1:]]), row.averaged): accuracy(row)
        for row in rows
    }
    return ["### How many draws a gradient needs", "", *grid(heads, columns, cells), ""]


def _converging(rows: Sequence[Result]) -> list[Result]:
    """Rows that differ from another in nothing but their draws."""
    drawn = grouped((row for row in rows if row.averaged), _without_draws).values()
    return [row for group in drawn if len({row.averaged for row in group}) > 1 for row in group]


def _ordered(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.rank)


def _lines(rows: Sequence[Row], content: TableFile) -> dict[tuple[str, str], list[Row]]:
    """The rows of each line by its defense and its pictures: as declared, the line on more pictures first."""
    declared, name = [*content.defenses.values()], _names(content)
    rows = sorted(rows, key=lambda row: (declared.index(row.defense), -row.n))
    return grouped(rows, lambda row: (name(row.defense), str(row.n)))


def _heading(subject: Subject) -> str:
    return f"{subject.label}, {subject.data_words}, seed {subject.seed}"


def _shared(rows: Sequence[Result]) -> Mapping[str, object]:
    """What all attacks of a column took alike, other than the level's own."""
    taken = rows[0].unusual
    return {
        name: value for name, value in taken.items() if all(row.unusual.get(name) == value for row in rows)
    }


def _column(row: Condition) -> str:
    return row.threat if row.threat == "clean" else f"{row.threat} {row.eps}"


def _without_draws(row: Result) -> tuple[str, ...]:
    """What a row is about, its first word the chain."""
    taken = effort(row.unusual, without=("draws",))
    return (row.defense, _heading(row), *filter(None, [_column(row), taken]), f"{row.n} pictures")


def _verdict(illusion: Illusion) -> list[str]:
    strong = "yes" if illusion.only_looks_strong else ""
    return [difference(illusion, illusion), strong, _gain(illusion)]


def _gain(illusion: Illusion) -> str:
    if illusion.gain is None:
        return ""
    sides = {part.taken > part.against for part in illusion.unequal}
    words = [f"attacked {'harder' if harder else 'less hard'}" for harder in sorted(sides)]
    return "; ".join([difference(illusion.gain, illusion, claimed=illusion.holds is not None), *words])


def _unlike(part: Unequal) -> str:
    """What one side was attacked with more of. No defense has draws: they are held against the level's
    own.
    """
    own = "the level's own " if part.what == "draws" else ""
    return f"{part.threat}: {effort({part.what: part.taken})} against {own}{part.against}"
