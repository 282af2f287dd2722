"""Folders of pictures as users have them: what can't be learned from is refused by name before anything is
written; odd names are learned.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from pictures import write_pictures

from prompts_store.store import PromptStore
from robustclip.errors import DataRefused
from robustclip.models.clip import Clip
from training.learning.tuning.command import main


def learn(pictures: Path, folder: Path, *options: str) -> PromptStore:
    method = [
        "--objective.kind",
        "capt",
        "--objective.epochs",
        "1",
        "--objective.steps",
        "1",
        "--validate-at",
        "clean",
    ]
    places = [
        "--store",
        str(folder / "store"),
        "--runs",
        str(folder / "runs"),
        "--backbone",
        "tiny",
        "--name",
        "learned",
        "--json",
    ]
    assert main(["--data", str(pictures), *method, *places, *options]) == 0
    return PromptStore(folder / "store")


def broken(train: Path) -> None:
    (train / "red_thing" / "1.png").write_bytes((train / "red_thing" / "1.png").read_bytes()[:60])


def no_picture(train: Path) -> None:
    (train / "red_thing" / "1.png").write_bytes(b"GIF it is not")


def one_class(train: Path) -> None:
    for name in ("red_thing", "blue_thing"):
        (train / name).rename(train.parent / name)


def too_few(train: Path) -> None:
    for number in range(1, 4):
        (train / "red_thing" / f"{number}.png").unlink()


def no_pictures(train: Path) -> None:
    (train / "zebra").mkdir()


def in_test_alone(train: Path) -> None:
    (train.parent / "test" / "zebra").mkdir(parents=True)
    (train.parent / "test" / "zebra" / "0.png").write_bytes((train / "red_thing" / "0.png").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (no_pictures, "the class folder 'zebra' has no pictures"),
        (in_test_alone, "the split 'train' has no picture of 'zebra'"),
        (broken, r"red_thing/1\.png"),
        (no_picture, r"red_thing/1\.png"),
        (one_class, "at least 2 classes, found 1"),
        (too_few, "'red thing' has 1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_and_nothing_is_published(
    tmp_path: Path, tiny: Clip, spoil: Callable[[Path], None], complaint: str
) -> None:
    pictures = write_pictures(tmp_path / "pictures", train=4)
    spoil(pictures / "train")
    with pytest.raises(DataRefused, match=complaint):
        learn(pictures, tmp_path, "--shots", "4")
    assert PromptStore(tmp_path / "store").names() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"] == []


def test_names_that_read_the_same_are_one_label_and_names_of_any_script_are_learned(
    tmp_path: Path, tiny: Clip, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_pictures(tmp_path / "pictures", train=4)
    train = pictures / "train"
    for old, new in {"red_thing": "красная вещь", "blue_thing": "猫"}.items():
        (train / old).rename(train / new)
    (train / "green thing").mkdir()
    (train / "green_thing" / "3.png").rename(train / "green thing" / "3.png")
    store = learn(pictures, tmp_path, "--shots", "3")
    (stored,) = store.versions("learned", tiny.fingerprint)
    assert stored.manifest is not None
    assert set(stored.manifest.labels) == {"green thing", "красная вещь", "猫"}
    assert store.verify(tiny) == []
