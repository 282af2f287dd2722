import json
from pathlib import Path
from typing import Any

import pytest
from company import run_two
from torch import Tensor

from prompts_store.store import PromptStore
from robustclip.errors import DataRefused, InvalidInput, UnsupportedClip
from robustclip.models.clip import Clip
from training.data.labelled import LabelledImages
from training.data.sampling import HELD_OUT, few_shot
from training.data.sources import Source
from training.learning.tuning.command import main
from training.learning.tuning.run import open_training

OBJECTIVE = [
    "--objective.kind",
    "advpt",
    "--objective.vectors",
    "4",
    "--objective.epochs",
    "3",
    "--objective.batch",
    "8",
    "--objective.eps",
    "4/255",
]


class Workshop:
    """A folder with a store and a place for runs, and the command run in it."""

    def __init__(self, folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.pictures, self.capsys = folder, pictures, capsys
        self.store = PromptStore(folder / "store")

    def train(self, *options: str, objective: list[str] = OBJECTIVE, runs: str = "runs") -> dict[str, Any]:
        places = ["--store", str(self.folder / "store"), "--runs", str(self.folder / runs)]
        assert (
            main(
                [
                    "--data",
                    str(self.pictures),
                    "--backbone",
                    "tiny",
                    "--name",
                    "learned",
                    *objective,
                    *places,
                    "--json",
                    *options,
                ]
            )
            == 0
        )
        return json.loads(self.capsys.readouterr().out)


@pytest.fixture
def workshop(tmp_path: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]) -> Workshop:
    return Workshop(tmp_path, picture_folder, capsys)


def test_a_run_publishes_a_set_whose_manifest_tells_how_it_was_made(workshop: Workshop, tiny: Clip) -> None:
    report = workshop.train(
        "--shots",
        "5",
        "--seed",
        "2",
        "--note",
        "a trial",
        "--validate-at",
        "clean,T0",
        "--validate-eps",
        "2/255",
        "--activate",
    )
    loaded = workshop.store.load("learned", tiny)
    manifest = loaded.manifest
    assert str(loaded.ref) == report["ref"]
    assert (manifest.objective["kind"], manifest.objective["vectors"], manifest.objective["eps"]) == (
        "advpt",
        4,
        4 / 255,
    )
    assert manifest.clip is not None
    assert manifest.clip.fingerprint == tiny.fingerprint
    assert (manifest.labels, manifest.shots, manifest.seed, manifest.note) == (
        ("blue thing", "green thing", "red thing"),
        5,
        2,
        "a trial",
    )
    assert manifest.dataset == workshop.pictures.name
    assert manifest.attack is not None
    assert manifest.attack["score"] == "embedding_shift"
    assert [(found.threat, found.eps, found.n, found.split) for found in manifest.results] == [
        ("clean", "0", 3, "train:validation"),
        ("T0", "2/255", 3, "train:validation"),
    ]
    assert loaded.prompts.text is not None
    assert loaded.prompts.text.shape == (1, 4, 32)
    assert report["pictures"] == 15
    assert report["preparing"]["forward"] == 15 * 13


def test_the_same_run_is_the_same_version_wherever_it_is_repeated(workshop: Workshop, tiny: Clip) -> None:
    refs = {
        workshop.train()["ref"],
        workshop.train()["ref"],
        workshop.train(runs="other")["ref"],
        workshop.train("--fresh")["ref"],
    }
    assert len(refs) == 1
    assert len(workshop.store.versions("learned", tiny.fingerprint)) == 1


def test_a_run_resumes_unless_it_is_told_to_begin_afresh(workshop: Workshop) -> None:
    assert [
        workshop.train(*options)["tuning"]["text_passes"] for options in ((), ("--resume",), ("--fresh",))
    ] == [15, 0, 15]


def test_other_parameters_never_share_a_checkpoint(workshop: Workshop) -> None:
    workshop.train()
    assert workshop.train("--seed", "1")["tuning"]["text_passes"] == 15
    assert workshop.train("--objective.learning_rate", "0.01")["tuning"]["text_passes"] == 15


def test_the_control_is_trained_by_the_same_command(workshop: Workshop, tiny: Clip) -> None:
    report = workshop.train("--activate", objective=["--objective.kind", "coop", "--objective.epochs", "1"])
    assert report["preparing"]["backward"] == 0
    assert workshop.store.load("learned", tiny).manifest.attack is None


def test_a_method_on_pictures_reports_its_run_beside_the_set(workshop: Workshop, tiny: Clip) -> None:
    objective = [
        "--objective.kind",
        "apd",
        "--objective.epochs",
        "2",
        "--objective.eps",
        "2/255",
        "--objective.average",
        "0.9",
    ]
    report = workshop.train("--activate", objective=objective)
    manifest = workshop.store.load("learned", tiny).manifest
    assert manifest.attack is not None
    assert (manifest.attack["score"], manifest.attack["steps"]) == ("cross_entropy", 2)
    assert list(report["companions"]) == ["teacher"]
    assert ("average" in manifest.note) == report["averaged"]
    assert report["whole_run"] == {"forward": 33 * 2 * 4, "backward": 33 * 2 * 4, "text_passes": 2 * 2 * 2}
    page = Path(report["report"])
    assert page.parent == workshop.folder / "store" / tiny.fingerprint[:8] / "learned"
    assert report["ref"] in page.read_text()
    assert workshop.store.verify(tiny) == []


def test_a_cap_on_passes_shortens_the_run_and_its_schedule(workshop: Workshop, tiny: Clip) -> None:
    objective = ["--objective.kind", "apt", "--objective.epochs", "9"]
    report = workshop.train("--max-passes", str(33 * 10 * 4 + 5), "--activate", objective=objective)
    assert report["epochs"] == 4
    assert workshop.store.load("learned", tiny).manifest.objective["epochs"] == 4


def test_prompts_that_leave_no_room_for_a_label_are_refused_before_anything_is_computed(
    workshop: Workshop,
) -> None:
    with pytest.raises(InvalidInput, match="tokens, but there are 2 vectors"):
        workshop.train(objective=["--objective.kind", "capt", "--objective.words", "a photomicrograph of"])
    assert list(workshop.folder.iterdir()) == []


def test_base_classes_alone_are_learned_and_their_names_are_all_the_set_knows(
    workshop: Workshop, tiny: Clip
) -> None:
    report = workshop.train("--classes", "base", "--shots", "5", "--activate")
    manifest = workshop.store.load("learned", tiny).manifest
    assert manifest.labels == ("blue thing", "green thing")
    assert report["pictures"] == 10
    assert "some classes alone: base" in manifest.note
    assert [(found.n, found.split) for found in manifest.results] == [(2, "train:validation")]


def test_some_classes_hold_out_what_all_classes_do_and_take_the_same_shots(picture_folder: Path) -> None:
    data, candidates, validation = open_training(picture_folder, Path("base"))
    whole, all_candidates, all_validation = open_training(picture_folder)

    def named(images: LabelledImages, rows: Tensor) -> set[str]:
        return {name for name in (images.names[row] for row in rows.tolist()) if "red" not in name}

    assert named(data, validation) == named(whole, all_validation)
    assert named(data, few_shot(data, candidates, 4, seed=1)) == named(
        whole, few_shot(whole, all_candidates, 4, seed=1)
    )


def test_what_was_held_out_of_some_classes_is_what_evaluate_finds_there(
    workshop: Workshop, picture_folder: Path
) -> None:
    workshop.train("--classes", "base")
    data, _, validation = open_training(picture_folder, Path("base"))
    held_out = data.subset(validation, HELD_OUT)
    assert (
        Source(folder=picture_folder, split=HELD_OUT, classes=Path("base"), among="these").open().digest
        == held_out.digest
    )


def test_a_file_names_classes_to_learn(workshop: Workshop, tiny: Clip) -> None:
    path = workshop.folder / "some.txt"
    path.write_text("red thing\nblue thing = blueish thing\n")
    workshop.train("--classes", str(path), "--activate")
    assert workshop.store.load("learned", tiny).manifest.labels == ("blueish thing", "red thing")
    with pytest.raises(DataRefused, match="at least 2 classes, new names 1") as refused:
        workshop.train("--classes", "new")
    assert refused.value.field == "--classes"


def test_nothing_is_active_unless_asked(workshop: Workshop, tiny: Clip) -> None:
    workshop.train()
    assert workshop.store.active(tiny.fingerprint) == {}


def test_what_a_user_can_cure_is_refused_before_anything_is_written(workshop: Workshop) -> None:
    with pytest.raises(DataRefused, match="40 shots a class asked"):
        workshop.train("--shots", "40")
    with pytest.raises(UnsupportedClip):
        workshop.train("--backbone", "no-such-clip")
    with pytest.raises(InvalidInput):
        workshop.train("--name", "../escape")
    with pytest.raises(DataRefused):
        workshop.train("--data", str(workshop.folder / "nowhere"))
    assert list(workshop.folder.iterdir()) == []


def test_people_read_lines(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    folder = workshop.folder
    places = ["--store", str(folder / "store"), "--runs", str(folder / "runs")]
    assert (
        main(
            ["--data", str(workshop.pictures), "--backbone", "tiny", "--name", "learned", *OBJECTIVE, *places]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert out.startswith("published learned@")
    assert "of 3 held-out pictures" in out
    assert "robustclip prompts activate learned@" in out


@pytest.mark.slow
def test_of_two_processes_one_publishes_and_reports(picture_folder: Path, tmp_path: Path, tiny: Clip) -> None:
    objective = ["--objective.kind", "apt", "--objective.epochs", "2", "--objective.vectors", "4"]
    options = [
        "--data",
        str(picture_folder),
        "--backbone",
        "tiny",
        "--name",
        "learned",
        *objective,
        "--device",
        "cpu",
        "--accumulate",
        "2",
    ]
    places = ["--store", str(tmp_path / "store"), "--runs", str(tmp_path / "runs")]
    said = run_two(
        "import sys; from training.learning.tuning.command import main; sys.exit(main(sys.argv[1:]))",
        *options,
        *places,
        "--precision",
        "bf16",
        "--json",
    )
    assert said[1] == ""
    store = PromptStore(tmp_path / "store")
    assert len(store.versions("learned", tiny.fingerprint)) == 1
    assert "bfloat16" in store.load(json.loads(said[0])["ref"], tiny).manifest.note
