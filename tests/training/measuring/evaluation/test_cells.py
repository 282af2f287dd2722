from pathlib import Path

import pytest
import torch

from robustclip.errors import DataRefused
from robustclip.measuring import Measured
from robustclip.types import Cost
from training.measuring.evaluation.cells import cell_path, keep, packed, recall, unpacked
from training.threats.judging import AtLevel

KEY = {"clip": "f00d", "eps": 1 / 255, "indices": [0, 2, 5]}
FOUND = AtLevel(
    Measured(torch.tensor([True, False, True]), torch.tensor([True, True, True]), Cost(12, 34), 5.5),
    {"kind": "ensemble"},
    {"noise": 0, "square": 1},
)


def test_a_cell_is_recalled_as_it_was_kept(tmp_path: Path) -> None:
    path = cell_path(tmp_path / "cells", KEY)
    assert recall(path, 3) is None
    keep(path, KEY, FOUND)
    again = recall(path, 3)
    assert again is not None
    assert torch.equal(again.measured.correct, FOUND.measured.correct)
    assert torch.equal(again.measured.correct_8bit, FOUND.measured.correct_8bit)
    assert (again.measured.cost, again.measured.seconds, again.attack, again.fell_to) == (
        Cost(12, 34),
        5.5,
        FOUND.attack,
        FOUND.fell_to,
    )
    assert path.read_text().count("\n") == 1


def test_a_vote_s_silence_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    keep(
        path,
        KEY,
        FOUND._replace(measured=FOUND.measured._replace(abstained=torch.tensor([False, True, False]))),
    )
    again = recall(path, 3)
    assert again is not None
    assert again.measured.abstained is not None
    assert again.measured.abstained.tolist() == [False, True, False]


def test_whatever_the_numbers_depend_on_names_the_file(tmp_path: Path) -> None:
    changed = [KEY, {**KEY, "clip": "beef"}, {**KEY, "eps": 2 / 255}, {**KEY, "indices": [0, 2]}]
    assert len({cell_path(tmp_path, key) for key in changed}) == 4


@pytest.mark.parametrize("content", ["", "{", '{"correct": "101"}', '{"key": {}, "correct": 7}', "\x00"])
def test_a_damaged_cell_is_named_and_not_taken_for_a_number(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cell.json"
    path.write_text(content)
    with pytest.raises(DataRefused, match="Remove this file") as refused:
        recall(path, 3)
    assert refused.value.field == str(path)


def test_a_cell_of_other_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    keep(path, KEY, FOUND)
    with pytest.raises(DataRefused, match="expected 4 pictures, found 3"):
        recall(path, 4)


@pytest.mark.parametrize(
    ("right", "digits"),
    [([], ""), ([True], "8"), ([True, False, False, True], "9"), ([False] * 4 + [False, True], "04")],
)
def test_outcomes_are_packed_four_to_a_digit(right: list[bool], digits: str) -> None:
    assert packed(torch.tensor(right, dtype=torch.bool)) == digits
    assert unpacked(digits, len(right)).tolist() == right


@pytest.mark.parametrize("digits", ["", "88", "1", "x"])
def test_outcomes_of_another_number_of_pictures_are_refused(digits: str) -> None:
    with pytest.raises(ValueError, match=r"3 pictures|base 16"):
        unpacked(digits, 3)
