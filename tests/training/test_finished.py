"""Finished work on disk: made once, by one process, and refused when the file holds something else."""

from functools import partial
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from robustclip.errors import DataRefused
from robustclip.files import claimed
from training import finished


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    value: int


def ask(path: Path, asked: list[int], *, wait: bool = True) -> Answer | None:
    """The answer 7; `asked` grows whenever it is computed."""

    def compute() -> Answer:
        asked.append(1)
        return Answer(value=7)

    def keep(answer: Answer) -> None:
        finished.keep(path, answer.model_dump_json())

    return finished.once(path, partial(finished.recall, path, Answer, "answer"), compute, keep, wait=wait)


def test_an_answer_is_computed_once_and_is_one_line(tmp_path: Path) -> None:
    path, asked = finished.path_of(tmp_path / "answers", {"question": 1, "seed": 0}), list[int]()
    assert [ask(path, asked), ask(path, asked)] == [Answer(value=7)] * 2
    assert asked == [1]
    assert path.read_text() == '{"value":7}\n'


def test_a_key_names_the_file_whatever_its_order(tmp_path: Path) -> None:
    path = finished.path_of(tmp_path, {"question": 1, "seed": 0})
    assert path == finished.path_of(tmp_path, {"seed": 0, "question": 1})
    assert path != finished.path_of(tmp_path, {"question": 1, "seed": 1})


def test_who_does_not_wait_for_another_process_gets_nothing(tmp_path: Path) -> None:
    path, asked = tmp_path / "answer.json", list[int]()
    with claimed(path, wait=False):
        assert ask(path, asked, wait=False) is None
    assert asked == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"value": "x"}', b'{"other": 1}', b"\xff"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answer.json"
    path.write_bytes(content)
    with pytest.raises(DataRefused, match="no answer") as refusal:
        ask(path, [])
    assert refusal.value.field == str(path)
    assert refusal.value.help == "Remove this file: it will be made again."
