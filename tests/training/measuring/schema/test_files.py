"""Files of results are read whole or refused, and what is written again has the same bytes."""

import json
from pathlib import Path
from typing import Any

import measured
import pytest

from robustclip.errors import InvalidInput
from training.measuring.pages.results import FOLDER
from training.measuring.schema.base import Difference
from training.measuring.schema.evaluation import Result
from training.measuring.schema.files import (
    CertifiedFile,
    SelectionFile,
    TableFile,
    read_results,
    results_of,
)

FILES = sorted(FOLDER.glob("*.json"))
WRITTEN_WHOLE = [path for path in FILES if not path.stem.startswith(("select-", "certified-"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_committed_file_is_read_and_written_again_as_it_was(path: Path) -> None:
    content = read_results(path)
    if isinstance(content, SelectionFile):
        assert path.stem.startswith("select-")
        return
    assert isinstance(content, CertifiedFile) is path.stem.startswith("certified-")
    assert json.dumps(content.as_json()) == json.dumps(json.loads(path.read_text()))


@pytest.mark.parametrize("path", WRITTEN_WHOLE, ids=lambda path: path.stem)
def test_a_table_is_written_again_with_the_same_bytes(path: Path) -> None:
    content = read_results(path)
    assert isinstance(content, TableFile)
    assert (json.dumps(content.as_json(), indent=1) + "\n").encode() == path.read_bytes()


def test_keys_keep_their_order_and_what_is_left_out_stays_left_out() -> None:
    values = measured.row(method="plain")
    line = Result.model_validate(dict(reversed(values.items())))
    assert list(line.as_json()) == list(reversed(values))
    assert line.steps is None
    assert "steps" not in line.as_json()
    assert list(Difference(low=0.0, high=1.0, mcnemar=None, difference=0.5).as_json()) == [
        "low",
        "high",
        "mcnemar",
        "difference",
    ]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in measured.row().items() if key != name}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([measured.row(), measured.row(speed=3)], "results/1/speed: Extra inputs are not permitted, found 3"),
        ([measured.row(), without("accuracy")], "results/1/accuracy: Field required"),
        ([measured.row(n="many")], "results/0/n: Input should be a valid integer"),
        ([measured.row(threat="T9")], "results/0/threat: expected one of clean, T0"),
        ([measured.row(data=["toys", "tools"])], "results/0/data: Input should be a valid string"),
        ([measured.row(cost={"forward": "x"})], "results/0/cost/forward: "),
        ("none", "results: Input should be a valid tuple"),
    ],
)
def test_what_no_command_writes_is_refused_with_file_row_and_field(
    tmp_path: Path, rows: Any, complaint: str
) -> None:
    path = tmp_path / "toys.json"
    path.write_text(json.dumps({"title": "Toys", "says": "", "results": rows}))
    with pytest.raises(InvalidInput) as refused:
        read_results(path)
    assert str(refused.value).startswith(f"{path}/{complaint}")


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"results": []}', '{"candidates": []}', "\udcff"])
def test_what_is_no_file_of_results_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "toys.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidInput) as refused:
        read_results(path)
    assert str(refused.value).startswith(str(path))
    with pytest.raises(InvalidInput, match="can't be read as results"):
        read_results(tmp_path / "absent.json")


def test_parts_of_a_difference_and_of_a_certificate_are_named_too() -> None:
    paired = {name: value for name, value in measured.paired(n=1).items() if name != "mcnemar"}
    with pytest.raises(InvalidInput, match="toys/paired/0/mcnemar: Field required"):
        results_of({"title": "", "says": "", "results": [], "paired": [paired]}, field="toys")
    with pytest.raises(InvalidInput, match="votes/results/0/backbone: Field required"):
        results_of({"kind": "certified", "title": "", "says": "", "results": [{}]}, field="votes")
