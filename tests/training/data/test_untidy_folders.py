"""Folders as archives, network drives and editors leave them: no picture, no class is lost without a word."""

import codecs
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pictures import LABELS, write_pictures

from robustclip.errors import DataRefused
from training.data.classes import choose_classes, read_classes
from training.data.folders import load_data
from training.data.sampling import few_shot


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", train=3, test=2)


@pytest.mark.parametrize(
    "clutter",
    [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", ".thumbnails", "$RECYCLE.BIN", "__pycache__"],
)
def test_what_programs_leave_behind_is_no_class_and_no_picture(folder: Path, clutter: str) -> None:
    picture = (folder / "train" / "red_thing" / "0.png").read_bytes()
    before = load_data(folder, "train")
    for place in (folder, folder / "train", folder / "train" / "red_thing", folder / "test"):
        (place / clutter).mkdir()
        for name in ("0-checkpoint.png", "._0.png"):
            (place / clutter / name).write_bytes(picture)
        for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "._train.parquet"):
            (place / name).write_bytes(b"no picture")
    after = load_data(folder, "train")
    assert (after.labels, after.names, after.digest) == (before.labels, before.names, before.digest)
    assert load_data(folder / "train", "all").labels == LABELS


def empty(train: Path) -> None:
    (train / "zebra").mkdir()
    (train / "zebra" / ".gitkeep").touch()


def other_files(train: Path) -> None:
    (train / "zebra").mkdir()
    (train / "zebra" / "0.gif").write_bytes(b"GIF89a")


def nested(train: Path) -> None:
    (train / "red_thing" / "batch1").mkdir()
    for path in (train / "red_thing").glob("*.png"):
        path.rename(path.parent / "batch1" / path.name)


def partly_nested(train: Path) -> None:
    (train / "red_thing" / "more").mkdir()
    (train / "red_thing" / "0.png").rename(train / "red_thing" / "more" / "0.png")


def beside(train: Path) -> None:
    (train / "red_thing" / "0.png").rename(train / "lost.png")


def dead_picture(train: Path) -> None:
    (train / "red_thing" / "9.png").symlink_to(train / "nowhere.png")


def dead_class(train: Path) -> None:
    (train / "zebra").symlink_to(train / "nowhere")


def circle(train: Path) -> None:
    (train / "zebra").symlink_to(train / "zebra")


def other_capitals(train: Path) -> None:
    (train / "Red_Thing").mkdir()
    (train / "red_thing" / "0.png").rename(train / "Red_Thing" / "0.png")


def no_name(train: Path) -> None:
    (train / "red_thing").rename(train / "_\u200b")


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (empty, "the class folder 'zebra' has no pictures"),
    (other_files, "the class folder 'zebra' has no pictures"),
    (nested, "red_thing/batch1 is a folder inside a class folder"),
    (partly_nested, "red_thing/more is a folder inside a class folder"),
    (beside, "train/lost.png is in no class folder"),
    (dead_picture, "9.png is a link to nothing"),
    (dead_class, "zebra is a link to nothing"),
    (circle, "zebra"),
    (other_capitals, "'Red Thing' and 'red thing' are the same to CLIP"),
    (no_name, "no name that one can read"),
]


@pytest.mark.parametrize(("spoil", "complaint"), SPOILT)
def test_pictures_and_classes_that_would_be_lost_are_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    folder = write_pictures(tmp_path / "pictures", train=3)
    spoil(folder / "train")
    for place, split in ((folder, "train"), (folder / "train", "all")):
        with pytest.raises(DataRefused, match=complaint):
            load_data(place, split)


def test_all_is_no_split_of_a_folder_that_has_splits(folder: Path) -> None:
    with pytest.raises(DataRefused, match=r"no split 'all'. It has test, train"):
        load_data(folder, "all")


def test_links_to_pictures_and_to_classes_are_followed(folder: Path, tmp_path: Path) -> None:
    before = load_data(folder, "train")
    (folder / "train" / "red_thing").rename(tmp_path / "elsewhere")
    (folder / "train" / "red_thing").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "0.png").rename(tmp_path / "0.png")
    (tmp_path / "elsewhere" / "0.png").symlink_to(tmp_path / "0.png")
    assert load_data(folder, "train").digest == before.digest


def test_a_class_of_the_other_split_is_named_and_not_to_be_had_with_fewer_shots(folder: Path) -> None:
    for split, name in (("test", "zebra"), ("train", "lion")):
        (folder / split / "red_thing").rename(folder / split / name)
    data = load_data(folder, "train")
    assert set(data.labels) == {"blue thing", "green thing", "lion", "zebra"}
    with pytest.raises(DataRefused, match="the split 'train' has no picture of 'zebra'") as refusal:
        few_shot(data, torch.arange(len(data)), 1, 0)
    assert "fewer," not in (refusal.value.help or "")
    assert len(few_shot(data, torch.arange(len(data)), 1, 0, allow_fewer=True)) == 3
    with pytest.raises(DataRefused, match="'zebra'"):
        few_shot(data, torch.arange(len(data)), 5, 0)


@pytest.mark.parametrize("encode", [str.encode, lambda text: codecs.BOM_UTF8 + text.encode()])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_names_of_classes_are_read_from_any_editor_and_find_their_folders(
    folder: Path, encode: Callable[[str], bytes], end: str
) -> None:
    names = ("Red Thing", "blue__thing", "green thing\u200b")
    (folder / "classes.txt").write_bytes(encode(end.join(names) + end))
    data = load_data(folder, "train")
    assert data.labels == ("Red Thing", "blue thing", "green thing")
    assert data.targets.tolist() == [1] * 3 + [2] * 3 + [0] * 3
    (chosen := folder / "chosen.txt").write_bytes(encode(end.join(["red_thing = warm", "Blue Thing"])))
    assert choose_classes(data, chosen, "these").labels == ("warm", "blue thing")
    chosen.write_bytes(encode(end.join(["red_thing", "Red Thing"])))
    with pytest.raises(DataRefused, match="names the class 'Red Thing' twice"):
        choose_classes(data, chosen, "all")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
def test_names_in_another_encoding_are_refused(folder: Path, encoding: str) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (folder / "classes.txt").write_bytes(mark + "blue thing\ngrün\nred thing\n".encode(encoding))
    for read in (lambda: load_data(folder, "train"), lambda: read_classes(folder / "classes.txt")):
        with pytest.raises(DataRefused, match=r"classes.txt can't be read as UTF-8 text"):
            read()


def test_a_line_separator_inside_a_name_is_no_new_line(folder: Path) -> None:
    (folder / "classes.txt").write_text("blue\u2028thing\ngreen thing\nred thing\n", encoding="utf-8")
    assert load_data(folder, "train").labels == LABELS


def test_folders_that_no_name_or_several_names_fit_are_refused(folder: Path) -> None:
    (folder / "classes.txt").write_text("blue thing\ngreen thing\n")
    with pytest.raises(DataRefused, match=r"the class folder 'red_thing' is not in classes\.txt"):
        load_data(folder, "train")
    (folder / "classes.txt").write_text("blue thing\ngreen thing\nRed thing\nred Thing\n")
    with pytest.raises(DataRefused, match="'Red thing' and 'red Thing' are the same to CLIP"):
        load_data(folder, "train")
