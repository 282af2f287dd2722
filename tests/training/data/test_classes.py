"""Some classes of a data set, under their own or other names."""

from importlib.resources import files
from pathlib import Path

import pytest

from robustclip.errors import DataRefused
from training.data.classes import choose_classes, imagenet_words, read_classes
from training.data.folders import load_data
from training.data.labelled import LabelledImages
from training.foundry.pretraining.captions import HELD_OUT_SYNONYMS


@pytest.fixture
def data(picture_folder: Path) -> LabelledImages:
    return load_data(picture_folder, "test")


def write(folder: Path, text: str) -> Path:
    path = folder / "classes.txt"
    path.write_text(text)
    return path


def test_only_their_pictures_remain_and_all_names_compete(data: LabelledImages, tmp_path: Path) -> None:
    chosen = choose_classes(data, write(tmp_path, "# remark\nred thing\n\n"), "all")
    assert chosen.labels == data.labels
    assert len(chosen) == 6
    assert {chosen.labels[target] for target in chosen.targets.tolist()} == {"red thing"}
    assert all("red_thing" in name for name in chosen.names)


def test_these_names_alone_compete_in_the_order_of_the_data(data: LabelledImages, tmp_path: Path) -> None:
    chosen = choose_classes(data, write(tmp_path, "red thing\nblue thing\n"), "these")
    assert chosen.labels == ("blue thing", "red thing")
    for name, target in zip(chosen.names, chosen.targets.tolist(), strict=True):
        assert chosen.labels[target].split()[0] in name


def test_a_class_can_be_called_something_else(data: LabelledImages, tmp_path: Path) -> None:
    chosen = choose_classes(data, write(tmp_path, "red thing = crimson object\n"), "all")
    assert chosen.labels == ("blue thing", "green thing", "crimson object")
    assert {chosen.labels[target] for target in chosen.targets.tolist()} == {"crimson object"}
    assert chosen.digest != data.digest


@pytest.mark.parametrize(
    ("text", "among", "words"),
    [
        ("purple thing\n", "all", "'purple thing'"),
        ("red thing\nred thing\n", "all", "twice"),
        ("red thing = Blue Thing\n", "all", "two classes the name"),
        ("red thing\n", "these", "at least 2"),
        ("# nothing\n", "all", "names no class"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    data: LabelledImages, tmp_path: Path, text: str, among: str, words: str
) -> None:
    with pytest.raises(DataRefused, match=words) as caught:
        choose_classes(data, write(tmp_path, text), among)  # pyright: ignore[reportArgumentType]
    assert caught.value.field == "--classes"


def test_a_missing_file_is_refused(data: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="can't be read"):
        choose_classes(data, tmp_path / "none.txt", "all")


def test_the_lists_that_ship_agree_with_pretraining() -> None:
    lists = Path(str(files("training"))) / "class_lists"
    held_out, trained = (read_classes(lists / f"tiny-{name}.txt") for name in ("held-out", "trained"))
    assert (len(held_out), len(trained)) == (20, 180)
    assert not {*held_out} & {*trained}
    assert read_classes(lists / "tiny-synonyms.txt") == HELD_OUT_SYNONYMS
    assert {*HELD_OUT_SYNONYMS} <= {*trained}
    assert {*read_classes(lists / "tiny-synonyms-as-trained.txt")} == {*HELD_OUT_SYNONYMS}


def test_wordnet_numbers_become_names_and_nothing_else_does() -> None:
    assert imagenet_words(("n01443537", "n01440764")) == ("goldfish", "tench")
    assert imagenet_words(("n01443537", "cat")) == ("n01443537", "cat")
