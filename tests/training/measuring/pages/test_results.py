"""The results page says what the JSON files say."""

import json
import re
from pathlib import Path
from typing import Any

import measured
import pytest
import torch
from torch import Tensor

from robustclip.measuring import accuracy
from training.measuring.evaluation.cells import unpacked
from training.measuring.pages.results import FOLDER, PAGE, main


def row(prompt_set: str, threat: str, eps: str, accuracy: float, defense: str = "none") -> dict[str, Any]:
    command = (
        f"robustclip evaluate --backbone tiny --prompt-set {prompt_set} --data toys --threat {threat} "
        f"--eps {eps} --seed 0 --json"
    )
    about = {"prompt_set": prompt_set, "threat": threat, "eps": eps, "command": command, "defense": defense}
    return measured.row(accuracy=accuracy, **about)


def pair(low: float, p: float) -> dict[str, Any]:
    sets = {"a": "learned@22", "b": "plain@11"}
    return measured.paired(**sets, threat="T0", eps="1/255", n=100, low=low, high=0.4, mcnemar=p)


def content(**changes: Any) -> dict[str, Any]:
    rows = [
        row(name, threat, eps, share)
        for name, share in (("plain@11", 0.5), ("learned@22", 0.7))
        for threat, eps in (("clean", "0"), ("T0", "1/255"))
    ]
    return {
        "title": "Toys",
        "says": "Learning helps.",
        "results": rows,
        "paired": [pair(0.1, 0.01)],
        **changes,
    }


def test_every_number_stands_in_the_column_of_its_condition() -> None:
    page = measured.page("toys", content())
    assert "| prompt set | clean | T0 1/255 |" in page
    assert "| plain@11 | 50.0 (40.0 to 60.0) | 50.0 (40.0 to 60.0) |" in page
    assert "| learned@22 | 70.0 (60.0 to 80.0) | 70.0 (60.0 to 80.0) |" in page
    assert "tiny, toys test, 100 pictures, seed 0 (`results/toys.json`)." in page
    assert "Learning helps." in page
    assert "    robustclip evaluate --backbone tiny --data toys --seed 0 --json ..." in page


@pytest.mark.parametrize(("low", "p", "bold"), [(0.1, 0.01, True), (-0.1, 0.01, False), (0.1, 0.2, False)])
def test_a_difference_is_bold_where_both_tests_say_so(low: float, p: float, bold: bool) -> None:
    page = measured.page("toys", content(paired=[pair(low, p)]))
    cell = f"+20.0 ({100 * low:+.1f} to +40.0; p {p:.2g})"
    assert (f"**{cell}**" if bold else f"| {cell} |") in page


def test_defenses_are_rows_and_what_was_not_measured_is_empty() -> None:
    rows = [row("plain@11", "clean", "0", 0.5), row("plain@11", "T2", "1/255", 0.25, "jpeg:75")]
    page = measured.page("toys", {"title": "Toys", "says": "", "results": rows})
    assert "| plain@11 | 50.0 (40.0 to 60.0) |  |" in page
    assert "| plain@11 behind jpeg:75 |  | 25.0 (15.0 to 35.0) |" in page


def test_several_data_sets_have_a_table_each_and_one_of_means() -> None:
    rows = [{**found, "data": data} for data in ("toys", "tools") for found in content()["results"]]
    means = [over(["toys", "tools"], [0])]
    paired = [
        measured.paired(
            a="learned",
            b="plain",
            low=0.1,
            high=0.4,
            data=["toys", "tools"],
            seeds=[0],
            n_each=[100, 100],
        )
    ]
    page = measured.page(
        "toys", content(results=rows, paired=[pair(0.1, 0.01)], over_data=means, paired_over_data=paired)
    )
    toys, tools = page.index("### tiny, toys test"), page.index("### tiny, tools test")
    assert toys < page.index("| learned - plain |") < tools < page.index("### Means over toys, tools")
    assert page.count("| learned@22 | 70.0 (60.0 to 80.0) |") == 2
    assert "| plain | 25.0 (20.0 to 30.0) |" in page
    assert "**+20.0 (+10.0 to +40.0)**" in page


def over(data: list[str], seeds: list[int], *, n: int = 100, threat: str = "clean") -> dict[str, Any]:
    about = {
        **measured.PICTURES,
        "data": data,
        "seeds": seeds,
        "n_each": [n] * len(data),
        "threat": threat,
        "eps": "0" if threat == "clean" else "1/255",
    }
    return {**about, "prompt_set": "plain", "accuracy": 0.25, "low": 0.2, "high": 0.3}


def left_out(data: list[str], seeds: list[int], threat: str, missing: list[Any]) -> dict[str, Any]:
    mean = over(data, seeds, threat=threat)
    about = {name: value for name, value in mean.items() if name not in ("accuracy", "low", "high")}
    return {**about, "prompt_set": "dear", "missing": missing}


def test_means_over_other_data_sets_or_seeds_are_no_rows_of_one_table() -> None:
    four, two = ["toys", "tools", "pets", "cars"], ["toys", "tools"]
    page = measured.page(
        "toys",
        content(
            over_data=[
                over(four, [0, 1]),
                {**over(two, [0, 1]), "prompt_set": "dear"},
                over(four, [0], threat="T3"),
            ]
        ),
    )
    headings = [
        f"### Means over {', '.join(data)}: tiny, test, {seeds}"
        for data, seeds in ((four, "seeds 0, 1"), (two, "seeds 0, 1"), (four, "seed 0"))
    ]
    places = [page.index(heading) for heading in headings]
    assert places == sorted(places)
    assert places[1] < page.index("| dear |") < places[2] < page.index("| prompt set | T3 1/255 |")


def test_who_has_no_mean_is_named_with_what_it_lacks() -> None:
    lacking = [{"data": "toys", "seeds": [0, 1]}, {"data": "tools", "seeds": [1]}]
    out = [left_out(["toys", "tools"], [0, 1], threat, lacking) for threat in ("clean", "T2")]
    named = "- no mean of dear under clean, T2 1/255: not measured on toys, seeds 0, 1; tools, seed 1"
    assert named in measured.page(
        "toys", content(over_data=[over(["toys", "tools"], [0, 1])], left_out_over_data=out)
    )
    page = measured.page("toys", content(left_out_over_data=out))
    assert (
        page.index("### Means over toys, tools: tiny, test, seeds 0, 1")
        < page.index("Nobody has them all.")
        < page.index(named)
    )


def test_columns_on_other_pictures_say_on_how_many() -> None:
    rows = [
        {**row("plain@11", "clean", "0", 0.5), "n": 2000},
        row("plain@11", "T2", "1/255", 0.25),
        {**row("plain@11", "T2", "1/255", 0.3), "n": 400},
    ]
    page = measured.page(
        "toys",
        {
            "title": "Toys",
            "says": "",
            "results": rows,
            "paired": [pair(0.1, 0.01), {**pair(0.2, 0.01), "n": 400}],
        },
    )
    assert "| prompt set | clean, 2,000 pictures | T2 1/255, 100 pictures | T2 1/255, 400 pictures |" in page
    assert "| plain@11 | 50.0 (40.0 to 60.0) | 25.0 (15.0 to 35.0) | 30.0 (20.0 to 40.0) |" in page
    assert "| paired | T0 1/255, 100 pictures | T0 1/255, 400 pictures |" in page
    means = [over(["toys", "tools"], [0], n=1000), over(["toys", "tools"], [0], threat="T2")]
    assert "| prompt set | clean, 2,000 pictures | T2 1/255, 200 pictures |" in measured.page(
        "toys", content(over_data=means)
    )


def test_columns_and_cells_of_other_seeds_say_which() -> None:
    means = [
        measured.mean(prompt_set=name, accuracy=0.6, seeds=seeds, deviation=0.1)
        for name, seeds in (("plain@11", [0, 1]), ("learned@22", [0, 1, 2]))
    ]
    page = measured.page(
        "toys",
        {
            "title": "Toys",
            "says": "",
            "results": [row("plain@11", "T2", "1/255", 0.2)],
            "over_seeds": means,
        },
    )
    assert "| prompt set | clean, seeds 0, 1, 2 | T2 1/255, seed 0 |" in page
    assert "| plain@11 | 60.0 (50.0 to 70.0; sd 10.0); seeds 0, 1 | 20.0 (10.0 to 30.0) |" in page
    assert "| learned@22 | 60.0 (50.0 to 70.0; sd 10.0) |  |" in page


def test_several_seeds_are_their_mean() -> None:
    rows = [{**row("plain@11", "clean", "0", share), "seed": seed} for seed, share in ((0, 0.5), (1, 0.7))]
    seeds = {"prompt_set": "plain@11", "seeds": [0, 1]}
    mean = measured.mean(**seeds, accuracy=0.6, low=0.55, high=0.65, deviation=0.141)
    page = measured.page(
        "toys",
        {
            "title": "Toys",
            "says": "",
            "results": [*rows, row("plain@11", "T2", "1/255", 0.2)],
            "over_seeds": [mean],
        },
    )
    assert "| plain@11 | 60.0 (55.0 to 65.0; sd 14.1) | 20.0 (10.0 to 30.0) |" in page
    assert "50.0 (" not in page


def test_a_cell_that_a_check_contradicts_is_inconclusive() -> None:
    rows = [row("plain@11", threat, "1/255", share) for threat, share in (("T1", 0.1), ("T3", 0.6))]
    headline = measured.headline(prompt_set="plain@11", refused=["M5"])
    said = {"name": "transfer beats adaptive", "sentence": "T3 finds less"}
    check = measured.check(prompt_set="plain@11", **said)
    page = measured.page(
        "toys",
        {
            "title": "Toys",
            "says": "",
            "results": rows,
            "headlines": [headline],
            "checks": [check, {**check, "fired": False}],
        },
    )
    assert "| plain@11 | 10.0 (0.0 to 20.0) | inconclusive (M5) |" in page
    assert "Masking checks: 2, 1 of them fired." in page
    assert "- M5 transfer beats adaptive: plain@11, toys test: T3 finds less." in page


def test_what_a_check_says_of_a_defense_names_it() -> None:
    said = {"id": "M6", "name": "black box", "sentence": "so it is"}
    check = measured.check(prompt_set="plain@11", defense="jpeg:75", **said)
    assert "- M6 black box: plain@11 behind jpeg:75, toys test: so it is." in measured.page(
        "toys", content(checks=[check])
    )


def test_few_pictures_are_counted_and_have_no_percentage() -> None:
    rows = [
        {**row("plain@11", "T2", "1/255", 0.5), "n": 8, "abstained": 0.125},
        {**row("learned@22", "T2", "1/255", 0.75), "n": 8},
    ]
    page = measured.page(
        "toys",
        {
            "title": "Toys",
            "says": "",
            "results": rows,
            "paired": [{**pair(0.1, 0.2), "n": 8, "difference": 0.25}],
        },
    )
    assert "| plain@11 | 4/8; abstained 1 |" in page
    assert "| learned@22 | 6/8 |" in page
    assert "| learned - plain | +2 of 8, p 0.2 |" in page
    condition = {"prompt_set": "learned@22", "threat": "T2", "eps": "1/255", "n": 8}
    mean = measured.mean(**condition, seeds=[0, 1], accuracy=0.8125, deviation=0.1)
    page = measured.page(
        "toys",
        {
            "title": "Toys",
            "says": "",
            "results": [rows[1], {**rows[1], "seed": 1}],
            "over_seeds": [mean],
        },
    )
    assert "| learned@22 | 13/16 |" in page


def test_what_an_attack_took_beside_the_usual_is_in_the_head_of_its_column() -> None:
    rows = [
        row("plain@11", "T2", "1/255", 0.5),
        {**row("plain@11", "T2", "1/255", 0.75), "steps": 20, "draws": 1, "search": "bfloat16"},
    ]
    page = measured.page("toys", {"title": "Toys", "says": "", "results": rows})
    assert "| prompt set | T2 1/255 | T2 1/255, 20 steps, 1 draw, searched in bfloat16 |" in page
    assert "| plain@11 | 50.0 (40.0 to 60.0) | 75.0 (65.0 to 85.0) |" in page


def test_a_refused_headline_is_found_whatever_the_attack_took() -> None:
    rows = [{**row("plain@11", "T3", "1/255", 0.6), "restarts": 3}, row("plain@11", "T2", "1/255", 0.5)]
    headline = measured.headline(prompt_set="plain@11", refused=["M5"])
    page = measured.page("toys", {"title": "Toys", "says": "", "results": rows, "headlines": [headline]})
    assert "| plain@11 | 50.0 (40.0 to 60.0) | inconclusive (M5) |" in page  # columns go by level


def test_a_page_that_was_edited_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "toys.json").write_text(json.dumps(content()))
    places = ["--folder", str(tmp_path / "results"), "--page", str(tmp_path / "RESULTS.md")]
    assert main([*places, "--check"]) == 1
    assert main(places) == 0
    assert main([*places, "--check"]) == 0
    page = tmp_path / "RESULTS.md"
    page.write_text(page.read_text().replace("70.0", "77.0"))
    assert main([*places, "--check"]) == 1
    assert "make results" in capsys.readouterr().err


def test_what_can_t_be_had_is_said_with_its_reason_and_what_is_to_come_in_one_sentence() -> None:
    gap = {"method": "capt", "data": "toys", "seed": 0, "why": "it collapsed"}
    later = [
        {"method": name, "data": data, "seed": seed, "why": "x", "pending": True}
        for name in "ab"
        for data in ("toys", "tools")
        for seed in (2, 1)
    ]
    lines = measured.page("toys", content(missing=[gap, *later])).splitlines()
    assert [line for line in lines if line.startswith(("- not there", "- still"))] == [
        "- not there: capt, toys, seed 0: it collapsed",
        "- still to come, all or in part: toys (seeds 1, 2), tools (seeds 1, 2)",
    ]


def test_the_committed_page_is_what_the_committed_files_make() -> None:
    assert any(FOLDER.glob("*.json"))
    assert PAGE.is_file()
    assert main(["--check"]) == 0


def test_what_tables_say_follows_from_the_outcomes_that_they_hold() -> None:
    """Every accuracy, and every difference of two methods on one data set."""
    about = ("backbone", "data", "split", "defense", "threat", "eps", "n")
    for path in FOLDER.glob("*.json"):
        record = json.loads(path.read_text())
        outcomes: dict[tuple[Any, ...], list[Tensor]] = {}
        for row in record.get("results", ()):
            if "measured_on" in row:
                right = unpacked(row["right"], row["n"])
                assert accuracy(right) == (row["accuracy"], row["low"], row["high"])
                outcomes.setdefault((row["method"], *(row[name] for name in about)), []).append(right.float())
        for pair in record["paired"] if outcomes else ():
            ours, theirs = (
                torch.stack(outcomes[(pair[side], *(pair[name] for name in about))]) for side in "ab"
            )
            assert float((ours - theirs).mean()) == pytest.approx(pair["difference"], abs=1e-6)


def test_verdicts_and_the_readme_quote_numbers_that_the_tables_have() -> None:
    """Every "+1.2 (+0.3 to +2.1)" of a verdict is a difference there; the README's means are the means."""
    for name in ("main", "natural"):
        record = json.loads((FOLDER / f"{name}.json").read_text())
        compared = [*record["paired_over_data"], *record["paired"]]
        known = {
            tuple(f"{100 * pair[part]:+.1f}" for part in ("difference", "low", "high")) for pair in compared
        }
        quoted = re.findall(r"([+-]\d+\.\d)(?: points)? \(([+-]\d+\.\d) to ([+-]\d+\.\d)\)", record["says"])
        assert len(quoted) > 5
        assert [triple for triple in quoted if triple not in known] == []
    record = json.loads((FOLDER / "main.json").read_text())
    rows = re.findall(
        r"^\| `(\w+)`[^|]*\| ([\d.]+) % \| ([\d.]+) % \| (?:([\d.]+) %)?[^|]*\|$",
        (FOLDER.parents[1] / "README.md").read_text(),
        re.MULTILINE,
    )
    table = [row for row in rows if row[0] in record["methods"] or row[0] == "handcrafted"][-5:]
    assert [row[0] for row in table] == ["handcrafted", "coop", "apt", "capt", "apd"]
    for method, *cells in table:
        for threat, cell in zip(("clean", "T2", "T3"), cells, strict=True):
            eps = "0" if threat == "clean" else "2/255"
            found = [
                mean
                for mean in record["over_data"]
                if (mean["prompt_set"], mean["threat"], mean["eps"]) == (method, threat, eps)
            ]
            whole = [f"{100 * mean['accuracy']:.1f}" for mean in found if len(mean["data"]) == 4]
            assert cell == (whole[0] if whole else "")


def test_settings_that_are_not_a_methods_own_stand_below_its_numbers() -> None:
    methods = {
        "capt": {
            "kind": "capt",
            "settings": {"coupling": "none", "eps": "2/255"},
            "chosen": ["coupling"],
            "selection": "select-capt.json",
        },
        "coop": {"kind": "coop", "settings": {}, "chosen": [], "selection": None},
    }
    page = measured.page("toys", content(methods=methods))
    assert "| capt | capt | coupling none, eps 2/255 | `select-capt.json`: coupling |" in page
    assert "| coop | coop | its own |  |" in page
