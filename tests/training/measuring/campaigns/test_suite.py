"""`robustclip suite`: a declared table, filled over several sittings, and the page that is made of it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measured
import pytest
from pictures import write_pictures

from robustclip.errors import DataRefused, InvalidInput
from robustclip.files import claimed
from training.measuring.campaigns.declaration import read_table
from training.measuring.campaigns.suite import main
from training.measuring.pages.results import FOLDER

TABLE = """
title = "Toys"
says = "What came of it."
backbone = "tiny"
data = ["caltech-101", "flowers-102-partial"]
shots = 3
seeds = [0, 1]
max_passes = 100
against = ["handcrafted"]

[methods.handcrafted]
prompt_set = "handcrafted"
[methods.coop]
objective = {kind = "coop", epochs = 2, vectors = 2}
[methods.apt]
objective = {kind = "apt", epochs = 9, vectors = 2}
[methods.capt]
objective = {kind = "capt", epochs = 1}

[[measures]]
threats = ["clean"]
[[measures]]
threats = ["T0"]
eps = ["2/255"]
limit = 6
[[measures]]
threats = ["T0"]
eps = ["4/255"]
limit = 6
seeds = [0]
methods = ["handcrafted", "coop"]
"""


class Workshop:
    """The command in a folder with pictures, a table and places of its own."""

    def __init__(self, folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.pictures, self.capsys = folder, pictures, capsys
        self.table = folder / "toys.toml"
        self.table.write_text(TABLE)

    def fill(self, *options: str) -> str:
        assert self.run(*options) == 0
        return self.capsys.readouterr().out

    def run(self, *options: str) -> int:
        places = [
            "--data",
            str(self.pictures),
            "--store",
            str(self.folder / "store"),
            "--runs",
            str(self.folder / "runs"),
        ]
        return main([str(self.table), *places, *options])

    def content(self) -> dict[str, Any]:
        return json.loads((self.folder / "toys.json").read_text())

    def kept(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (self.folder / "runs").rglob("*.json")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, size in (
        ("caltech-101", 32),
        ("flowers-102-partial", 36),
    ):  # else they were the same pictures, and their cells too
        write_pictures(root / name, size=size, train=5, test=3)
    return root


@pytest.fixture
def workshop(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> Workshop:
    return Workshop(tmp_path, data, capsys)


def test_the_cost_is_said_before_anything_is_done(workshop: Workshop) -> None:
    said = workshop.fill("--dry-run")
    assert (
        "8 trainings, 0 of them done already; at most 468 charged passes and 12 text passes" in said
    )  # 4 x 27 of coop, 4 x 90 of apt
    assert "28 cells, 0 of them measured already" in said
    assert (
        "4 can't be had: capt on caltech-101: --max-passes: one epoch on 9 pictures takes 144 image passes"
        in said
    )
    assert sorted(path.name for path in workshop.folder.iterdir()) == ["toys.toml"]


def test_a_table_is_filled_over_several_sittings_and_makes_a_page(workshop: Workshop) -> None:
    said = workshop.fill("--seed", "0", "--only", "caltech-101")
    assert "8 cells in" in said
    assert "still to come, all or in part: flowers-102-partial (seeds 0, 1), caltech-101 (seed 1)" in said
    first, content = workshop.kept(), workshop.content()
    assert {gap["why"] for gap in content["missing"] if gap["method"] in ("coop", "apt")} == {
        "not learned yet"
    }
    assert any(
        gap["method"] == "handcrafted" and "not measured yet" in gap["why"] for gap in content["missing"]
    )
    workshop.fill()
    assert {**workshop.kept(), **first} == workshop.kept()  # what was done stays as it was
    content = workshop.content()
    assert len(content["results"]) == 2 * 2 * 3 * 2 + 2 * 2
    assert {(gap["method"], gap["seed"]) for gap in content["missing"]} == {("capt", 0), ("capt", 1)}
    assert {training["epochs"] for training in content["trainings"] if training["method"] == "apt"} == {
        1
    }  # the cap's doing
    assert all(training["charged"] <= content["max_passes"] for training in content["trainings"])
    assert {(pair["a"], pair["b"]) for pair in content["paired"]} == {
        ("coop", "handcrafted"),
        ("apt", "handcrafted"),
    }
    by_cell: dict[tuple[str, str, int], set[int]] = {}
    for row in content["results"]:
        by_cell.setdefault((row["data"], row["threat"], row["seed"]), set()).add(row["n"])
    assert all(len(counts) == 1 for counts in by_cell.values())  # the same pictures for every method
    made_once = {row["cost"]["backward"] for row in content["results"] if row["threat"] == "T0"}
    assert len(made_once) == 1
    assert content["methods"]["coop"] == {
        "kind": "coop",
        "settings": {"epochs": "2", "vectors": "2"},
        "chosen": [],
        "selection": None,
    }
    page = measured.page("toys", content)
    assert (
        "| prompt set | clean, 9 pictures, seeds 0, 1 | T0 2/255, 6 pictures, seeds 0, 1 | T0 4/255, 6 "
        "pictures, seed 0 |" in page
    )
    assert content["left_out_over_data"] == []
    assert page.count("| coop |") >= 3  # two data sets, and their means
    assert "### Means over caltech-101, flowers-102-partial" in page
    assert "no method may take more than 100 charged image passes" in page
    assert "- not there: capt, caltech-101, seed 0: --max-passes" in page
    assert "    robustclip suite" in page
    assert "seeds 0, 1" in page
    before = workshop.kept()
    workshop.fill("--so-far")
    assert (workshop.content(), workshop.kept()) == (content, before)


@pytest.mark.parametrize("place", ["evaluate", "trained"])
def test_what_another_process_is_at_is_left_to_it_until_nothing_else_is_left(
    workshop: Workshop, place: str
) -> None:
    part = ("--seed", "0", "--only", "caltech-101", "--method", "handcrafted,coop")
    workshop.fill(*part)
    content, kept = workshop.content(), list(workshop.kept())
    taken, *others = [path for path in kept if path.parent.name == place]
    (workshop.folder / "toys.json").unlink()  # which would do instead
    for path in (taken, *others):
        path.unlink()
    with ThreadPoolExecutor(1) as pool:
        with claimed(taken, wait=False) as ours:
            assert ours
            filling, deadline = pool.submit(workshop.run, *part), time.monotonic() + 240
            while not all(path.exists() for path in others):
                assert time.monotonic() < deadline
                assert not filling.done()
                time.sleep(0.01)
            assert not taken.exists()
        assert filling.result(timeout=240) == 0
    assert all(path.exists() for path in kept)
    assert plain(workshop.content()) == plain(content)


def test_on_another_machine_the_json_does_for_what_it_has_whole(workshop: Workshop) -> None:
    part = ("--seed", "0", "--only", "caltech-101", "--method", "handcrafted,coop,apt")
    workshop.fill(*part)
    content = workshop.content()
    content["results"] = [
        row for row in content["results"] if (row["method"], row["threat"]) != ("apt", "T0")
    ]
    (workshop.folder / "toys.json").write_text(json.dumps(content))
    for place in ("runs", "store"):
        (workshop.folder / place).rename(workshop.folder / f"{place}-of-before")
    said = workshop.fill("--dry-run", *part)
    assert "2 prompt sets need nothing" in said
    assert "1 trainings, 0 of them done already" in said
    workshop.fill("--so-far")  # what is lost is none of the numbers
    assert plain(workshop.content())["results"] == plain(content)["results"]
    assert any(
        gap["method"] == "apt" and gap["why"] == "1 of 1 cells not measured yet"
        for gap in workshop.content()["missing"]
    )
    workshop.fill(*part)
    again = workshop.content()
    rows = {(row["method"], row["threat"], row["eps"]): row for row in again["results"]}
    remembered = [row for row in content["results"] if row["method"] != "apt"]
    assert [
        rows[row["method"], row["threat"], row["eps"]] for row in remembered
    ] == remembered  # their seconds, too
    assert len(rows) == 8
    assert len(list((workshop.folder / "runs" / "trained").glob("*.json"))) == 1


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (("vectors = 2}\n[methods.apt]", "vectors = 3}\n[methods.apt]"), False),  # another training
        (("limit = 6\n[[", "limit = 5\n[["), False),  # other pictures
        (('eps = ["2/255"]', 'eps = ["3/255"]'), False),
        (('title = "Toys"', 'title = "Playthings"'), True),
    ],
)
def test_the_json_does_for_nothing_but_the_same_question(
    workshop: Workshop, change: tuple[str, str], kept: bool
) -> None:
    part = ("--seed", "0", "--only", "caltech-101", "--method", "coop")
    workshop.fill(*part)
    for place in ("runs", "store"):
        (workshop.folder / place).rename(workshop.folder / f"{place}-of-before")
    assert change[0] in TABLE
    workshop.table.write_text(TABLE.replace(*change))
    assert ("1 prompt sets need nothing" in workshop.fill("--dry-run", *part)) == kept


def test_surrogates_are_a_measure_that_the_json_remembers_with_their_names(workshop: Workshop) -> None:
    measure = "[[measures]]\nthreats = ['T0b']\nsurrogates = [{}]\neps = ['8/255']\nlimit = 2\n"
    part = ("--seed", "0", "--only", "caltech-101", "--method", "handcrafted")
    workshop.table.write_text(TABLE + measure.format("'tiny'"))
    workshop.fill(*part)
    (row,) = [row for row in workshop.content()["results"] if row["threat"] == "T0b"]
    assert (row["attack"]["surrogates"], row["n"]) == (["tiny"], 2)
    assert "--surrogate tiny" in row["command"]
    (workshop.folder / "runs").rename(workshop.folder / "runs-of-before")
    assert "1 prompt sets need nothing" in workshop.fill("--dry-run", *part)
    workshop.table.write_text(TABLE + measure.format("'tiny', 'mini'"))
    assert "need nothing" not in workshop.fill("--dry-run", *part)


@pytest.mark.parametrize("content", ["{", "[]", '{"results": []}'])
def test_a_json_that_is_no_record_is_refused_before_anything_is_done(
    workshop: Workshop, content: str
) -> None:
    (workshop.folder / "toys.json").write_text(content)
    with pytest.raises(DataRefused, match=r"(?s)no record of a table.*Move this file away"):
        workshop.fill()
    assert (workshop.folder / "toys.json").read_text() == content
    assert not (workshop.folder / "runs").exists()


def plain(content: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock says."""
    timeless = [
        {name: value for name, value in row.items() if name not in ("seconds", "cost")}
        for row in content["results"]
    ]
    return {
        "results": timeless,
        **{name: content[name] for name in ("paired", "missing", "over_seeds", "checks_made")},
    }


BEHIND = """
title = "Toys behind glass"
backbone = "tiny"
data = ["caltech-101"]
seeds = [0]
max_passes = 100
against = ["handcrafted"]

[methods.handcrafted]
prompt_set = "handcrafted"

[defenses]
none = "none"
bits = "bit_depth:5"
shaken = "resize_pad"
absent = '[{"kind": "diffusion", "weights": "nowhere.json"}]'

[[measures]]
threats = ["clean", "static", "T2", "black-box"]
eps = ["4/255"]
defenses = ["none", "bits"]
queries = 5
limit = 4
[[measures]]
threats = ["T2"]
eps = ["4/255"]
defenses = ["shaken", "absent"]
steps = 2
draws = 2
limit = 4
"""


def test_defenses_multiply_with_what_they_are_attacked_by_and_one_that_is_not_there_is_a_gap(
    workshop: Workshop,
) -> None:
    workshop.table.write_text(BEHIND)
    said = workshop.fill("--dry-run", "--defense", "shaken,absent")
    assert "1 cells, 0 of them measured already" in said
    assert "1 can't be had: behind [{" in said
    assert "nowhere.json" in said
    workshop.fill("--defense", "shaken,absent")
    assert [
        (row["defense"], row["threat"], row["steps"], row["draws"]) for row in workshop.content()["results"]
    ] == [("resize_pad", "T2", 2, 2)]
    workshop.fill()
    content = workshop.content()
    levels = {"clean", "static", "T2", "black-box"}
    assert {(row["defense"], row["threat"]) for row in content["results"]} == {
        *((chain, threat) for chain in ("none", "bit_depth:5") for threat in levels),
        ("resize_pad", "T2"),
    }
    assert {row.get("queries") for row in content["results"] if row["threat"] == "black-box"} == {5}
    (gap,) = content["missing"]
    assert "nowhere.json" in gap["why"]
    assert content["defenses"]["bits"] == "bit_depth:5"
    (told,) = content["illusions"]  # shaken has no static row
    assert (told["defense"], told["worst"]["of"], told["gain"] is None) == (
        "bit_depth:5",
        ["T2", "black-box"],
        False,
    )
    page = measured.page("toys", content)
    assert told["unequal"] == []  # as many queries on both sides
    assert "| bits | 4 |" in page
    assert "2 steps, 2 draws |" in page
    assert "- not there: behind [{" in page


def test_nothing_measured_is_no_table(workshop: Workshop) -> None:
    with pytest.raises(InvalidInput, match="no cell of this table"):
        workshop.fill("--so-far")
    with pytest.raises(InvalidInput, match="It has handcrafted, coop, apt, capt"):
        workshop.fill("--method", "luck")
    assert not (workshop.folder / "toys.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "field", "words"),
    [
        ('prompt_set = "handcrafted"', "", "methods/handcrafted", "either a prompt_set"),
        ('{kind = "coop"', '{kind = "luck"', "methods/coop/objective", "luck"),
        (
            "epochs = 2, vectors",
            "epochs = 0, vectors",
            "methods/coop/objective/epochs",
            "greater than or equal to 1",
        ),
        ('against = ["handcrafted"]', 'against = ["luck"]', "", "not among methods"),
        ("seeds = [0]\n", "seeds = [7]\n", "", "not among seeds: 0, 1"),
        ("max_passes = 100\n", "", "max_passes", "required"),
        ("shots = 3", "shots = three", "", "can't be read"),
        (
            "[methods.handcrafted]",
            "[defenses]\nglass = 'prayer'\n[methods.handcrafted]",
            "defenses/glass/0",
            "prayer",
        ),
        ("seeds = [0]\n", "defenses = ['glass']\n", "", "not among defenses: none"),
        ("seeds = [0]\n", "surrogates = ['tiny']\n", "measures/2", "T0b is a measure of its own"),
        (
            "limit = 6\nseeds",
            "limit = 6\n[[measures]]\nthreats = ['T0b']\neps = ['2/255']\nseeds",
            "measures/3",
            "T0b is a measure of its own",
        ),
    ],
)
def test_a_declaration_at_fault_is_refused_by_field(
    workshop: Workshop, old: str, new: str, field: str, words: str
) -> None:
    assert old in TABLE
    workshop.table.write_text(TABLE.replace(old, new))
    with pytest.raises(InvalidInput, match=words) as refused:
        workshop.fill("--dry-run")
    assert str(refused.value.field).startswith(str(workshop.table))
    assert str(refused.value.field).endswith(field)


def record_of_capt(split: str) -> dict[str, Any]:
    """What `robustclip select` would have written, but for the split and an elder CLIP."""
    judged = {"data": "caltech-101", "split": split, "digest": "0" * 64, "n": 9}
    record = {
        "format": 1,
        "clip": {"arch": "elder", "pretrained": "", "fingerprint": "1" * 64},
        "over": ["alpha"],
        "by": "T2",
        "keep_first": False,
    }
    record |= {
        "shots": 16,
        "seeds": [0],
        "max_passes": 0,
        "steps": 20,
        "judged_on": [judged],
        "chosen": {"alpha": 1},
        "command": "robustclip select",
    }
    number = {
        "data": "caltech-101",
        "split": split,
        "seed": 0,
        "threat": "T2",
        "eps": "1/255",
        "n": 9,
        "accuracy": 0.5,
        "low": 0.3,
        "high": 0.7,
    }
    number |= {"command": f"robustclip evaluate --split {split}"}
    return record | {
        "candidates": [
            {
                "settings": {"alpha": 1},
                "objective": {"kind": "capt", "epochs": 1, "alpha": 1},
                "numbers": [number],
            }
        ]
    }


def choose_capt(workshop: Workshop, split: str) -> None:
    workshop.table.write_text(
        TABLE.replace(
            '[methods.capt]\nobjective = {kind = "capt", epochs = 1}',
            '[methods.capt]\nselection = "alpha.json"',
        )
    )
    (workshop.folder / "alpha.json").write_text(json.dumps(record_of_capt(split)))


def test_settings_that_a_test_file_chose_are_refused_with_the_field(workshop: Workshop) -> None:
    choose_capt(workshop, "test")
    with pytest.raises(InvalidInput, match="never on a test or validation file") as refused:
        workshop.fill("--dry-run")
    assert refused.value.field == f"{workshop.folder / 'alpha.json'}/judged_on/0/split"


def test_settings_that_were_chosen_for_another_clip_are_named_before_the_start(workshop: Workshop) -> None:
    choose_capt(workshop, "train:validation")
    assert (
        workshop.fill("--dry-run").count("capt: settings were chosen for elder (11111111), not for tiny") == 1
    )


def test_the_tables_that_are_declared_can_be_read() -> None:
    for path in FOLDER.glob("*.toml"):
        table = read_table(path)
        if path.stem.startswith("defenses"):
            assert {"handcrafted", "advpt"} == set(table.objectives)
            continue
        assert {"handcrafted", "coop", "advpt", "advpt_plus", "apt", "fap", "capt", "apd"} <= {
            method.replace("-", "_") for method in table.objectives
        }
