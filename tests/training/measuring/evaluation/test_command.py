import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import write_pictures
from sigmoid import sigmoid_backbone

from prompts_store.manifest import ClipIdentity, PromptManifest, PromptSet
from prompts_store.store import PromptStore
from robustclip.errors import DataRefused, InvalidInput, UnknownPromptSet
from robustclip.models.clip import Clip
from robustclip.models.prompts import LEARNED_TEMPLATE, Prompts
from training.measuring.evaluation.command import main

FACTS = {
    "backbone",
    "prompt_set",
    "data",
    "threat",
    "eps",
    "n",
    "accuracy",
    "low",
    "high",
    "attack",
    "seed",
    "seconds",
    "command",
}


def publish(
    root: Path,
    clip: Clip,
    *,
    name: str = "learned",
    labels: tuple[str, ...] = (),
    class_specific: bool = False,
    seed: int = 0,
) -> str:
    generator = torch.Generator().manual_seed(seed)
    text = 0.1 * torch.randn(
        *((len(labels),) if class_specific else ()), 1, 4, clip.text_width, generator=generator
    )
    manifest = PromptManifest.model_validate(
        {
            "name": name,
            "objective": {"kind": "coop"},
            "clip": ClipIdentity.of(clip),
            "templates": (LEARNED_TEMPLATE,),
            "class_specific": class_specific,
            "labels": labels,
            "code_version": "0",
            "created_at": "2026-01-01T00:00:00Z",
        }
    )
    prompts = Prompts(text=text, templates=(LEARNED_TEMPLATE,), class_specific=class_specific)
    return str(PromptStore(root).publish(PromptSet(manifest, prompts), activate=True))


class Bench:
    """The command over generated pictures, with its places in a temporary folder."""

    def __init__(self, folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.pictures, self.capsys = folder, pictures, capsys
        self.places = ["--store", str(folder / "store"), "--runs", str(folder / "runs")]

    def print(self, *options: str) -> str:
        assert main(["--backbone", "tiny", "--data", str(self.pictures), *self.places, *options]) == 0
        captured = self.capsys.readouterr()
        assert captured.err == ""  # no terminal, no progress
        return captured.out

    def evaluate(self, *options: str) -> dict[str, Any]:
        return json.loads(self.print("--json", *options))


@pytest.fixture
def bench(tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, picture_folder, capsys)


def test_one_json_object_holds_a_row_for_every_combination(bench: Bench, tiny: Clip) -> None:
    learned = publish(bench.folder / "store", tiny)
    found = bench.evaluate(
        "--prompt-set",
        "handcrafted,learned",
        "--threat",
        "clean,T0,T2",
        "--eps",
        "1/255,4/255",
        "--limit",
        "9",
    )
    rows = found["results"]
    assert len(rows) == 2 * (1 + 2 + 2)
    assert all(set(row) >= FACTS for row in rows)
    assert {row["prompt_set"].split("@")[0] for row in rows} == {"handcrafted", "learned"}
    assert learned in {row["prompt_set"] for row in rows}
    assert [(row["threat"], row["eps"]) for row in rows[:5]] == [
        ("clean", "0"),
        ("T0", "1/255"),
        ("T0", "4/255"),
        ("T2", "1/255"),
        ("T2", "4/255"),
    ]
    for row in rows:
        assert row["n"] == 9
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["accuracy"] * 9 == pytest.approx(round(row["accuracy"] * 9))
        assert (row["attack"] is None) == (row["threat"] == "clean")
    clean = {row["prompt_set"]: row["accuracy"] for row in rows if row["threat"] == "clean"}
    assert all(row["accuracy"] <= clean[row["prompt_set"]] for row in rows)


def test_under_sigmoid_an_answer_may_be_that_no_label_fits(bench: Bench, tmp_path: Path) -> None:
    def evaluated(*options: str) -> list[dict[str, Any]]:
        backbone = str(sigmoid_backbone(tmp_path, bias=-90.0))
        asked = ["--backbone", backbone, "--data", str(bench.pictures), *bench.places, "--json"]
        threats = ["--threat", "clean,T1,T2", "--eps", "4/255", "--limit", "6"]
        assert main([*asked, *threats, *options]) == 0
        return json.loads(bench.capsys.readouterr().out)["results"]

    usual, own = evaluated(), evaluated("--scoring", "sigmoid")
    assert all("scoring" not in row and "--scoring" not in row["command"] for row in usual)
    assert usual[0]["accuracy"] > 0
    for row in own:
        assert (row["scoring"], row["accuracy"]) == ("sigmoid", 0)
        assert main([*shlex.split(row["command"])[2:], "--runs", str(bench.folder / "other-runs")]) == 0
        (again,) = json.loads(bench.capsys.readouterr().out)["results"]
        assert {**again, "seconds": 0} == {**row, "seconds": 0}
    with pytest.raises(InvalidInput, match="no logit bias") as refusal:
        main(["--backbone", "tiny", "--data", str(bench.pictures), *bench.places, "--scoring", "sigmoid"])
    assert refusal.value.field == "--scoring"


def test_the_printed_command_gives_the_same_row(bench: Bench, tiny: Clip) -> None:
    publish(bench.folder / "store", tiny)
    options = [
        "--prompt-set",
        "handcrafted,learned",
        "--threat",
        "clean,T0,T2",
        "--eps",
        "4/255",
        "--limit",
        "7",
        "--seed",
        "5",
        "--defense",
        "bit_depth:5",
    ]
    for row in bench.evaluate(*options)["results"]:
        words = shlex.split(row["command"])
        assert words[:2] == ["robustclip", "evaluate"]
        assert main([*words[2:], "--runs", str(bench.folder / "other-runs")]) == 0
        (again,) = json.loads(bench.capsys.readouterr().out)["results"]
        assert {**again, "seconds": 0} == {**row, "seconds": 0}


def test_prompt_sets_are_compared_on_the_same_pictures(bench: Bench, tiny: Clip) -> None:
    publish(bench.folder / "store", tiny)
    found = bench.evaluate(
        "--prompt-set", "handcrafted,learned", "--threat", "clean,T0", "--eps", "4/255", "--per-picture"
    )
    assert [pair["threat"] for pair in found["paired"]] == ["clean", "T0"]
    for pair in found["paired"]:
        assert (pair["a"].split("@")[0], pair["b"].split("@")[0]) == ("learned", "handcrafted")
        accuracy = {
            row["prompt_set"]: row["accuracy"] for row in found["results"] if row["threat"] == pair["threat"]
        }
        assert pair["difference"] == pytest.approx(accuracy[pair["a"]] - accuracy[pair["b"]])
        assert pair["low"] <= pair["difference"] <= pair["high"]
        assert 0 <= pair["mcnemar"] <= 1
    for row in found["results"]:
        assert len(row["correct"]) == len(row["pictures"]) == row["n"] == 18
        assert sum(row["correct"]) == pytest.approx(row["accuracy"] * 18)
        assert row["pictures"][0] == "test/blue_thing/0.png"


def test_a_set_alone_is_compared_with_nothing(bench: Bench) -> None:
    assert "paired" not in bench.evaluate("--threat", "clean")


def test_a_template_is_a_prompt_set(bench: Bench) -> None:
    template, handcrafted = bench.evaluate("--prompt-set", "a photo of a {}.", "--prompt-set", "handcrafted")[
        "results"
    ]
    assert template["accuracy"] == handcrafted["accuracy"]
    assert template["prompt_set"] == "a photo of a {}."


def test_t3_makes_a_headline_or_says_what_forbids_one(bench: Bench) -> None:
    found = bench.evaluate(
        "--threat", "clean,T0,T1,T2,T3", "--eps", "1/255", "--limit", "6", "--strength", "quick"
    )
    right = {row["threat"]: row["accuracy"] for row in found["results"]}
    assert right["clean"] >= right["T2"] >= right["T3"]
    (headline,) = found["headlines"]
    assert headline["refused"] or headline["accuracy"] == right["T3"]
    assert {check["id"] for check in found["checks"]} >= {"M5", "M7", "M15"}
    fell = {row["threat"]: row.get("fell_to") for row in found["results"]}
    assert set(fell["T3"]) == {"noise", "margin-pgd", "square"}
    assert fell["T2"] is None
    (command,) = (row["command"] for row in found["results"] if row["threat"] == "T3")
    assert "--strength quick" in command
    assert not [path for path in (bench.folder / "runs" / "evaluate").iterdir() if path.is_dir()], (
        "parts of cells that are whole"
    )


def test_a_wider_question_pays_only_for_what_is_new(bench: Bench) -> None:
    def cells() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (bench.folder / "runs" / "evaluate").iterdir()}

    options = ["--threat", "clean,T2", "--eps", "4/255", "--limit", "3"]
    first = bench.evaluate(*options)["results"]
    before = cells()
    assert len(before) == 2
    assert bench.evaluate(*options)["results"] == first  # seconds included: they are those of the measuring
    assert cells() == before
    plan = bench.evaluate(*options, "--seed", "0,1", "--dry-run")
    assert [(cell["threat"], cell["seed"], cell["measured"]) for cell in plan["plan"]] == [
        ("clean", 0, True), ("T2", 0, True), ("clean", 1, False), ("T2", 1, False),
    ]  # fmt: skip
    assert [cell["charged"] for cell in plan["plan"]] == [0, 0, 3, 3 * 3 + 3 * 301]
    assert cells() == before
    thrice = bench.evaluate(*options, "--restarts", "3", "--dry-run")
    assert [(cell["charged"], cell["measured"]) for cell in thrice["plan"]] == [
        (0, True),
        (3 * 3 + 3 * 903, False),
    ]
    both = bench.evaluate(*options, "--seed", "0,1")
    assert both["results"][:2] == first
    assert {**before, **cells()} == cells()
    assert len(cells()) == 4
    assert [(means["threat"], means["seeds"]) for means in both["over_seeds"]] == [
        ("clean", [0, 1]),
        ("T2", [0, 1]),
    ]
    bench.evaluate(*options, "--fresh")
    assert all(cells()[name] > when for name, when in before.items())


def test_a_bill_is_never_lower_than_what_was_spent(bench: Bench, tiny: Clip) -> None:
    publish(bench.folder / "store", tiny)
    options = [
        "--prompt-set",
        "handcrafted,learned",
        "--threat",
        "clean,T0,T1,T2,T3",
        "--eps",
        "0.1/255",
        "--limit",
        "3",
        "--strength",
        "quick",
    ]
    plan = bench.evaluate(*options, "--dry-run")
    assert plan["charged"] == sum(cell["charged"] for cell in plan["plan"])
    made_once = {cell["threat"]: cell["charged"] for cell in plan["plan"][:5]}
    again = {cell["threat"]: cell["charged"] for cell in plan["plan"][5:]}
    assert (again["T0"], again["T1"]) == (9, 9)
    assert made_once["T0"] > 9 + 3 * 120
    rows = bench.evaluate(*options)["results"]
    for row in (row for row in rows[:5] if row["threat"] != "T3"):
        assert row["cost"]["forward"] + 2 * row["cost"]["backward"] <= made_once[row["threat"]]


def test_a_seed_can_have_a_prompt_set_of_its_own(bench: Bench, tiny: Clip) -> None:
    versions = [publish(bench.folder / "store", tiny, name=f"own-{seed}", seed=seed) for seed in (0, 1)]
    found = bench.evaluate("--prompt-set", "handcrafted,own-%", "--seed", "0,1")
    assert [row["prompt_set"] for row in found["results"]][2:] == versions
    (pair,) = found["paired"]
    assert (pair["a"], pair["seeds"], pair["mcnemar"]) == ("own-%", [0, 1], None)


def test_base_and_new_classes_and_other_data_are_only_more_rows(bench: Bench, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", test=2)
    found = bench.evaluate(
        "--data",
        str(other),
        "--classes",
        "base,new",
        "--among",
        "all",
        "--prompt-set",
        "handcrafted",
        "--prompt-set",
        "art of {}.",
    )
    assert [(row["classes"], row["data"], row["n"]) for row in found["results"][::2]] == [
        ("base", bench.pictures.name, 12), ("new", bench.pictures.name, 6), ("base", "other", 4), ("new",
        "other", 2),
    ]  # fmt: skip
    assert len(found["paired"]) == 4
    assert [means["data"] for means in found["over_data"]] == [[bench.pictures.name, "other"]] * 4


def test_a_row_says_how_many_of_its_names_the_set_was_trained_on(bench: Bench, tiny: Clip) -> None:
    publish(bench.folder / "store", tiny, labels=("blue thing", "green thing"))
    options = ["--prompt-set", "handcrafted,learned", "--classes", "base,new"]
    rows = bench.evaluate(*options)["results"]
    found = [(row["classes"], row.get("seen_labels"), row.get("measured_labels")) for row in rows]
    assert found == [("base", None, None), ("base", 2, 2), ("new", None, None), ("new", 0, 1)]
    printed = bench.print(*options)
    assert "names trained on" in printed
    assert "0 of 1" in printed


def test_what_carries_over_between_prompt_sets_is_a_matrix(bench: Bench, tiny: Clip) -> None:
    learned = publish(bench.folder / "store", tiny)
    options = ["--prompt-set", "handcrafted,learned", "--transfer-matrix", "--eps", "2/255", "--limit", "4"]
    rows = bench.evaluate(*options)["transfer"]
    handcrafted = rows[0]["made_against"]
    assert [(row["made_against"], row["judged_under"]) for row in rows] == [
        (handcrafted, handcrafted), (handcrafted, learned), (learned, handcrafted), (learned, learned),
    ]  # fmt: skip
    assert all(row["n"] == 4 and row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    assert rows[0]["accuracy"] <= rows[2]["accuracy"]
    assert "made against" in bench.print(*options)
    with pytest.raises(InvalidInput, match="prompts alone"):
        bench.print(*options, "--defense", "jpeg:75")


def test_a_page_shows_rows_curves_checks_and_differences(bench: Bench) -> None:
    page = bench.folder / "pages" / "out.html"
    options = [
        "--prompt-set",
        "handcrafted",
        "--prompt-set",
        "<b>{}</b>",
        "--threat",
        "clean,T0",
        "--eps",
        "1/255,4/255",
        "--limit",
        "3",
    ]
    bench.print(*options, "--html", str(page))
    written = page.read_text()
    assert "<svg" in written
    assert "&lt;b&gt;{}&lt;/b&gt;" in written
    assert "<b>" not in written
    assert "there is no headline" in written
    assert written.count("<tr>") > 10
    assert "src=" not in written


def test_a_preset_brings_data_splits_and_words(bench: Bench, tmp_path: Path) -> None:
    places = ["--backbone", "tiny", "--runs", str(tmp_path / "runs"), "--store", str(tmp_path / "store")]
    for name in ("flowers-102-partial", "caltech-101"):
        write_pictures(tmp_path / "root" / name, test=1)
    options = [
        "--preset",
        "local",
        "--data",
        str(tmp_path / "root"),
        "--prompt-set",
        "handcrafted,data-template",
        "--json",
    ]
    with pytest.raises(DataRefused, match="cifar-10"):
        main([*places, *options])
    assert main([*places, *options, "--only", "flowers-102-partial,caltech-101"]) == 0
    rows = json.loads(bench.capsys.readouterr().out)["results"]
    assert [(row["data"], row["prompt_set"].split("@")[0]) for row in rows] == [
        ("caltech-101", "handcrafted"), ("caltech-101", "a photo of a {}."),
        ("flowers-102-partial", "handcrafted"), ("flowers-102-partial", "a photo of a {}, a type of flower."),
    ]  # fmt: skip
    assert main([*shlex.split(rows[3]["command"])[2:], "--runs", str(tmp_path / "other")]) == 0
    assert json.loads(bench.capsys.readouterr().out)["results"][0]["accuracy"] == rows[3]["accuracy"]
    with pytest.raises(InvalidInput, match="a preset decides"):
        main([*places, *options, "--template", "art of {}."])


def test_templates_can_be_averaged(bench: Bench) -> None:
    (row,) = bench.evaluate("--prompt-set", "a {}.|art of a {}.", "--limit", "3")["results"]
    assert row["prompt_set"] == "a {}.|art of a {}."


def test_a_surrogate_and_its_threat_level_come_together(bench: Bench) -> None:
    (row,) = bench.evaluate("--threat", "T0b", "--surrogate", "tiny", "--eps", "4/255", "--limit", "3")[
        "results"
    ]
    assert (row["threat"], row["attack"]["surrogates"]) == ("T0b", ["tiny"])
    assert "--surrogate tiny" in row["command"]
    for options in (["--threat", "T0b"], ["--threat", "T0", "--surrogate", "tiny"]):
        with pytest.raises(InvalidInput, match="--surrogate"):
            bench.print(*options)


def test_a_surrogate_under_another_template_is_another_question(bench: Bench) -> None:
    options = ["--threat", "T0b", "--surrogate", "tiny", "--eps", "4/255", "--limit", "3", "--dry-run"]
    bench.evaluate(*options[:-1])
    (same,) = bench.evaluate(*options)["plan"]
    (other,) = bench.evaluate(*options, "--template", "art of a {}.")["plan"]
    assert (same["measured"], other["measured"]) == (True, False)


def test_defenses_stand_side_by_side(bench: Bench) -> None:
    rows = bench.evaluate("--defense", "none", "--defense", "jpeg:75,bit_depth:4", "--limit", "3")["results"]
    assert [row["defense"] for row in rows] == ["none", "jpeg:75,bit_depth:4"]


def test_several_folders_are_several_rows(bench: Bench, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", test=2)
    rows = bench.evaluate("--data", str(other))["results"]
    assert [(row["data"], row["n"]) for row in rows] == [(bench.pictures.name, 18), ("other", 6)]


def test_what_training_held_out_can_be_measured(bench: Bench) -> None:
    assert bench.evaluate("--split", "train:validation")["results"][0]["n"] == 3


def test_chosen_classes_are_measured_alone_and_recorded(bench: Bench) -> None:
    wanted = bench.folder / "two.txt"
    wanted.write_text("red thing\nblue thing = azure thing\n")
    (row,) = bench.evaluate("--classes", str(wanted), "--among", "these")["results"]
    assert (row["n"], row["classes"], row["among"]) == (12, "two.txt", "these")
    assert f"--classes {wanted} --among these" in row["command"]
    (row,) = bench.evaluate("--classes", str(wanted))["results"]
    assert (row["n"], row["among"]) == (12, "all")


def test_people_read_tables(bench: Bench, tiny: Clip) -> None:
    publish(bench.folder / "store", tiny)
    out = bench.print(
        "--prompt-set", "handcrafted,learned", "--threat", "clean,T0", "--eps", "4/255", "--limit", "6"
    )
    assert "learned@" in out
    assert "95 % interval" in out
    assert "no difference" in out or "is better" in out


def test_a_class_specific_set_is_for_its_own_labels(bench: Bench, tiny: Clip) -> None:
    publish(
        bench.folder / "store",
        tiny,
        name="own",
        labels=("red thing", "green thing", "blue thing"),
        class_specific=True,
    )
    with pytest.raises(InvalidInput, match="not those of the data"):
        bench.print("--prompt-set", "own")
    publish(
        bench.folder / "store",
        tiny,
        name="fitting",
        labels=("blue thing", "green thing", "red thing"),
        class_specific=True,
    )
    assert bench.evaluate("--prompt-set", "fitting")["results"][0]["n"] == 18


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--threat", "T9"], InvalidInput, "--threat"),
        (["--threat", "T2", "--eps", "nan"], InvalidInput, "--eps"),
        (["--threat", "T2", "--eps=-1/255"], InvalidInput, "--eps"),
        (["--threat", "T2", "--eps", "0"], InvalidInput, "above 0"),
        (["--limit", "-3"], InvalidInput, "--limit"),
        (["--seed", "x"], InvalidInput, "--seed"),
        (["--strength", "brutal"], InvalidInput, "--strength"),
        (["--restarts", "0"], InvalidInput, "--restarts"),
        (["--template", "a photo"], InvalidInput, "--template"),
        (["--prompt-set", "nothing-here"], UnknownPromptSet, "Known: handcrafted"),
        (["--prompt-set", "../../etc"], InvalidInput, "prompt_set"),
        (["--prompt-set", "{} and {}"], InvalidInput, "exactly one"),
        (["--defense", "prayer"], InvalidInput, "--defense"),
        (["--split", "nowhere"], DataRefused, "It has test, train"),
        (["--data", "no-such-folder"], DataRefused, "no such folder"),
        (["--classes", "no-such-list.txt"], DataRefused, "can't be read"),
        (["--classes", "x.txt", "--among", "some"], InvalidInput, "--among"),
        (["--device", "abacus"], InvalidInput, "--device"),
        (["--backbone", "mini", "--pretrained", "x.pt"], InvalidInput, "one backbone"),
    ],
)
def test_wrong_options_are_refused_by_name(
    bench: Bench, options: list[str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        bench.print(*options)


def test_a_smoothed_chain_is_measured_by_the_vote_that_is_served(bench: Bench) -> None:
    options = ["--threat", "clean", "--limit", "3", "--defense", "smoothing:0.001,bit_depth:7"]
    planned = bench.evaluate(*options, "--dry-run")
    (row,) = bench.evaluate(*options)["results"]
    assert row["abstained"] == 0
    assert row["cost"]["forward"] == planned["charged"] == 3 * 100
    assert "abstained" in bench.print(*options)
    assert "abstained" not in bench.evaluate("--threat", "clean", "--limit", "3")["results"][0]


def test_levels_about_a_defense_are_rows_and_their_commands_give_them_again(bench: Bench) -> None:
    options = [
        "--threat",
        "clean,static,T2,black-box",
        "--eps",
        "4/255",
        "--limit",
        "3",
        "--defense",
        "resize_pad",
    ]
    dear = ["--steps", "3", "--draws", "2", "--queries", "5"]
    planned = bench.evaluate(*options, *dear, "--dry-run")["plan"]
    rows = bench.evaluate(*options, *dear)["results"]
    assert [row["threat"] for row in rows] == ["clean", "static", "T2", "black-box"]
    unusual = [{name: row[name] for name in ("steps", "draws", "queries") if name in row} for row in rows]
    assert unusual == [{}, {}, {"steps": 3, "draws": 2}, {"queries": 5, "draws": 2}]
    for row, cell in zip(rows, planned, strict=True):
        assert row["cost"]["forward"] + 2 * row["cost"]["backward"] <= cell["charged"]
        assert main([*shlex.split(row["command"])[2:], "--runs", str(bench.folder / "other-runs")]) == 0
        (again,) = json.loads(bench.capsys.readouterr().out)["results"]
        assert {**again, "seconds": 0} == {**row, "seconds": 0}
    page = bench.folder / "out.html"
    assert "T2, 3 steps, 2 draws" in bench.print(*options, *dear, "--html", str(page))
    assert "black-box, 5 queries, 2 draws" in page.read_text()
    later = bench.evaluate(*options, "--dry-run")["plan"]
    assert [cell["measured"] for cell in later] == [True, True, False, False]


def test_t3_behind_a_randomized_defense_goes_on_from_luck_and_stays_within_its_bill(bench: Bench) -> None:
    options = [
        "--threat",
        "T2,T3",
        "--eps",
        "0.01/255",
        "--limit",
        "2",
        "--strength",
        "quick",
        "--defense",
        "resize_pad",
    ]
    planned = bench.evaluate(*options, "--dry-run")["charged"]
    row = bench.evaluate(*options)["results"][-1]
    assert (row["threat"], row["attack"]["widen"], row["attack"]["randomized"], row["attack"]["draws"]) == (
        "T3",
        20,
        True,
        20,
    )
    assert row["cost"]["forward"] + 2 * row["cost"]["backward"] <= planned


def test_a_search_in_bfloat16_is_named_by_its_rows_and_within_its_bill(bench: Bench) -> None:
    options = ["--threat", "T1,T2,T3", "--eps", "2/255", "--limit", "2", "--strength", "quick"]
    half = [*options, "--search", "bfloat16"]
    planned = bench.evaluate(*half, "--dry-run")["plan"]
    rows = bench.evaluate(*half)["results"]
    assert [row.get("search") for row in rows] == [None, "bfloat16", "bfloat16"]
    assert rows[2]["attack"]["precision"] == "bfloat16"
    assert sum(row["cost"]["forward"] + 2 * row["cost"]["backward"] for row in rows[:2]) <= sum(
        cell["charged"] for cell in planned
    )
    assert "--search bfloat16" in rows[1]["command"]
    assert [cell["measured"] for cell in bench.evaluate(*options, "--dry-run")["plan"]] == [
        True,
        False,
        False,
    ]


def test_draws_do_not_concern_a_defense_that_has_none(bench: Bench) -> None:
    options = ["--threat", "T2", "--eps", "4/255", "--limit", "2", "--defense", "bit_depth:5"]
    (row,) = bench.evaluate(*options, "--draws", "3")["results"]
    assert "draws" not in row
    assert "--draws" not in row["command"]
    assert bench.evaluate(*options, "--dry-run")["charged"] == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--threat", "T2", "--steps", "20", "--defense", "none", "--defense", "jpeg"], "--steps"),
        (["--threat", "T3", "--steps", "20", "--defense", "jpeg"], "--steps"),
        (["--threat", "T2,T3", "--draws", "4", "--defense", "resize_pad"], "--draws"),
        (["--threat", "T2", "--draws", "0", "--defense", "resize_pad"], "--draws"),
        (["--threat", "black-box", "--queries", "0"], "--queries"),
    ],
)
def test_a_weak_attack_is_refused_where_it_would_flatter(
    bench: Bench, options: list[str], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        bench.print(*options)
    assert refused.value.field == field
