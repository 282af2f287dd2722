"""`robustclip select`: candidates on held-out training pictures, and what `train` and `evaluate` make of the
record.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from pictures import write_pictures

from prompts_store.manifest import ClipIdentity, PromptManifest, PromptSet
from prompts_store.store import PromptStore
from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from training.data.sampling import HELD_OUT
from training.learning.tuning.command import main as train
from training.learning.tuning.selection import load_selection
from training.measuring.campaigns.select import main
from training.measuring.evaluation.command import main as evaluate

TRIED = [
    "--objective",
    "coop",
    "--with",
    "epochs=2",
    "--with",
    "batch=8",
    "--over",
    "vectors=2,4",
    "--shots",
    "4",
    "--steps",
    "2",
    "--eps",
    "4/255",
]


class Workshop:
    """The commands in a folder of their own."""

    def __init__(self, folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.pictures, self.capsys, self.said = folder, pictures, capsys, ""
        self.common = ["--data", str(pictures), "--backbone", "tiny", "--runs", str(folder / "runs")]

    def select(self, *options: str, tried: list[str] = TRIED) -> str:
        assert main([*tried, *self.common, *options]) == 0
        return self.capsys.readouterr().out

    def train(self, *options: str) -> dict[str, Any]:
        assert (
            train(
                [*self.common, "--store", str(self.folder / "store"), "--name", "learned", "--json", *options]
            )
            == 0
        )
        captured = self.capsys.readouterr()
        self.said = captured.err
        return json.loads(captured.out)


@pytest.fixture
def workshop(tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> Workshop:
    return Workshop(tmp_path, picture_folder, capsys)


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_bill_comes_first_and_writes_nothing(workshop: Workshop) -> None:
    said = workshop.select("--dry-run", "--seed", "0,1")
    assert (
        "4 trainings, 0 of them done already; at most 144 charged passes and 16 text passes" in said
    )  # 12 pictures; 2 epochs of 2 steps
    assert "8 cells, 0 of them measured already" in said
    assert list(workshop.folder.iterdir()) == []


def test_the_record_tells_what_was_tried_and_train_takes_its_winner(workshop: Workshop, tiny: Clip) -> None:
    path = workshop.folder / "record.json"
    said = workshop.select("--seed", "0,1", "--out", str(path))
    assert f"robustclip train --selection {path} --backbone tiny --shots 4 --precision float32 " in said
    made = load_selection(path)
    assert [candidate.settings for candidate in made.candidates] == [{"vectors": 2}, {"vectors": 4}]
    assert [(number.threat, number.seed, number.split) for number in made.candidates[0].numbers] == [
        ("clean", 0, HELD_OUT), ("T2", 0, HELD_OUT), ("clean", 1, HELD_OUT), ("T2", 1, HELD_OUT),
    ]  # fmt: skip
    assert made.candidates[0].ahead is None
    assert made.candidates[1].ahead is not None
    assert all(
        "--steps 2" in number.command
        for candidate in made.candidates
        for number in candidate.numbers
        if number.threat == "T2"
    )
    assert made.judged_on[0].n == 3
    report = workshop.train("--selection", str(path), "--objective.epochs", "1", "--activate")
    manifest = PromptStore(workshop.folder / "store").load("learned", tiny).manifest
    assert manifest.objective["vectors"] == made.chosen["vectors"]
    assert (manifest.objective["epochs"], report["epochs"]) == (1, 1)
    assert manifest.objective["selection"] == made.carried().model_dump(mode="json")
    assert (
        evaluate(
            [
                *workshop.common,
                "--store",
                str(workshop.folder / "store"),
                "--prompt-set",
                "learned",
                "--limit",
                "3",
                "--json",
            ]
        )
        == 0
    )
    (row,) = json.loads(workshop.capsys.readouterr().out)["results"]
    assert row["selection"] == made.carried().digest


def test_settings_of_another_clip_are_taken_but_not_in_silence(workshop: Workshop) -> None:
    path = workshop.folder / "record.json"
    workshop.select("--out", str(path))
    assert workshop.train("--selection", str(path))["borrowed"] is None
    assert "chosen for" not in workshop.said
    values = json.loads(path.read_text())
    path.write_text(
        json.dumps({**values, "clip": {**values["clip"], "arch": "elder", "fingerprint": "1" * 64}})
    )
    sentence = workshop.train("--selection", str(path))["borrowed"]
    assert "chosen for elder (11111111), not for tiny" in sentence
    assert sentence in workshop.said  # before it starts


def test_what_was_chosen_cannot_be_changed(workshop: Workshop) -> None:
    path = workshop.folder / "record.json"
    workshop.select("--out", str(path))
    for options in (["--objective.vectors", "8"], ["--objective.kind", "advpt"]):
        with pytest.raises(InvalidInput, match="chosen by --selection") as refused:
            workshop.train("--selection", str(path), *options)
        assert refused.value.field == options[0]
    with pytest.raises(InvalidInput) as refused:
        workshop.train("--shots", "2")
    assert refused.value.field == "--objective.kind"


def test_a_selection_goes_on_where_it_was_and_says_the_same(workshop: Workshop) -> None:
    first, again = workshop.folder / "first.json", workshop.folder / "again.json"
    workshop.select("--out", str(first))
    before = files(workshop.folder / "runs")
    assert "2 of them done already" in workshop.select("--dry-run")
    workshop.select("--out", str(again))
    assert files(workshop.folder / "runs") == before
    ours, theirs = (json.loads(path.read_text()) for path in (first, again))
    assert {**ours, "command": ""} == {**theirs, "command": ""}


def test_a_candidate_that_cannot_be_trained_is_ruled_out_and_says_why(workshop: Workshop) -> None:
    path = workshop.folder / "record.json"
    words = [
        "--candidate",
        "words=a photomicrograph of,vectors=3",
        "--candidate",
        "vectors=2",
        "--shots",
        "4",
        "--steps",
        "2",
    ]
    said = workshop.select("--out", str(path), tried=["--objective", "coop", "--with", "epochs=1", *words])
    assert "can't be had" in said
    made = load_selection(path)
    assert made.chosen == {"words": "", "vectors": 2}
    assert "tokens, but there are 3 vectors" in str(made.candidates[0].why)


@pytest.mark.parametrize(
    ("tried", "field"),
    [
        (["--objective", "coop", "--over", "vectors=4"], "--over"),
        (["--objective", "coop", "--over", "vectors=4,4"], "--over vectors=4"),
        (["--objective", "coop", "--over", "eps=1/255,2/255"], "--over eps=1/255"),
        (["--over", "vectors=2,4"], "--objective"),
        (["--objective", "coop", "--over", "vectors"], "--over"),
        (["--objective", "coop", "--over", "vectors=2,4", "--by", "luck"], "--by"),
        (["--objective", "coop", "--over", "vectors=2,4", "--seed", "one"], "--seed"),
    ],
)
def test_what_makes_no_sense_is_refused_by_option(workshop: Workshop, tried: list[str], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        workshop.select(tried=tried)
    assert refused.value.field == field
    assert list(workshop.folder.iterdir()) == []


def test_pictures_too_few_to_hold_any_out_choose_nothing(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "few", train=4)
    with pytest.raises(InvalidInput, match="nothing is held out of few") as refused:
        main([*TRIED, "--data", str(pictures), "--backbone", "tiny", "--runs", str(tmp_path / "runs")])
    assert refused.value.field == "--data"
    assert not (tmp_path / "runs").exists()


def test_a_set_that_was_chosen_on_test_pictures_is_not_evaluated(workshop: Workshop, tiny: Clip) -> None:
    judged = {"data": "toys", "split": "test", "digest": "0" * 64, "n": 3}
    manifest = PromptManifest.model_validate(
        {
            "name": "peeked",
            "objective": {
                "kind": "coop",
                "selection": {"digest": "0" * 12, "over": ["vectors"], "judged_on": [judged]},
            },
            "clip": ClipIdentity.of(tiny),
            "templates": ("a {}.",),
            "code_version": "0",
            "created_at": "2026-01-01T00:00:00Z",
        }
    )
    PromptStore(workshop.folder / "store").publish(
        PromptSet(manifest, Prompts(templates=("a {}.",))), activate=True
    )
    with pytest.raises(InvalidInput, match="never on a test or validation file") as refused:
        evaluate([*workshop.common, "--store", str(workshop.folder / "store"), "--prompt-set", "peeked"])
    assert str(refused.value.field).endswith("objective/selection/judged_on/0/split")


def test_few_steps_are_for_choosing_alone(workshop: Workshop) -> None:
    common = [*workshop.common, "--threat", "T2", "--steps", "2", "--limit", "3", "--json"]
    assert evaluate([*common, "--split", HELD_OUT]) == 0
    (row,) = json.loads(workshop.capsys.readouterr().out)["results"]
    assert row["attack"]["steps"] == 2
    with pytest.raises(InvalidInput) as refused:
        evaluate(common)
    assert refused.value.field == "--steps"
