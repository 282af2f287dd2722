"""Folders of pictures to learn from."""

from pathlib import Path

import pytest
import torch
from pictures import write_pictures

from robustclip.errors import DataRefused
from training.data.folders import load_data
from training.foundry.corpus import folder_corpus, open_corpus


def silent(done: int, total: int, what: str) -> None:
    pass


def test_a_folder_keeps_a_tenth_of_each_class_back_and_answers_among_its_own_names(
    picture_folder: Path,
) -> None:
    corpus = folder_corpus(load_data(picture_folder, "train"), 32)
    own = [corpus.names.texts[name] for name in corpus.names.members[corpus.sets[0]].tolist()]
    assert own == ["blue thing", "green thing", "red thing"]
    assert [
        int(corpus.validation[corpus.name == name].sum())
        for name in corpus.names.members[corpus.sets[0]].tolist()
    ] == [1, 1, 1]


def test_a_picture_of_a_folder_is_not_touched_before_it_is_asked_for(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", train=6)
    (folder / "train" / "blue_thing" / "0.png").write_bytes(b"no picture")
    corpus = open_corpus(folder, tmp_path / "cache", size=32, workers=2, progress=silent)
    assert len(corpus.name) == 18
    assert corpus.pixels(torch.tensor([1, 17])).shape == (2, 3, 32, 32)
    with pytest.raises(DataRefused, match=r"blue_thing/0\.png is no usable picture"):
        corpus.pixels(torch.tensor([1, 0]))
    assert not (tmp_path / "cache").exists()


def test_threads_read_the_same_pictures(picture_folder: Path) -> None:
    data, rows = load_data(picture_folder, "train"), torch.tensor([5, 0, 17])
    assert torch.equal(folder_corpus(data, 32, workers=3).pixels(rows), folder_corpus(data, 32).pixels(rows))


def test_a_limit_leaves_that_many_pictures(picture_folder: Path, tmp_path: Path) -> None:
    corpus = open_corpus(picture_folder, tmp_path, size=32, limit=9, progress=silent)
    assert len(corpus.name) == 9
    assert len(corpus.name.unique()) == 3
