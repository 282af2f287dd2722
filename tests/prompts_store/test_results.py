import json
from pathlib import Path
from typing import Any

import pytest

from prompts_store.manifest import Ref, Result
from prompts_store.results import joined, read_results
from robustclip.errors import InvalidInput

REF = Ref("demo", "3f9c21d07b1e")
ROW: dict[str, Any] = {
    "method": "advpt", "backbone": "tiny", "prompt_set": str(REF), "data": "caltech-101", "split": "test",
    "defense": "none", "threat": "T2",
    "eps": "2/255", "n": 256, "accuracy": 0.5, "low": 0.44, "high": 0.56, "accuracy_8bit": 0.5,
    "attack": {"kind": "pgd", "steps": 100}, "seed": 0,
    "right": "f0", "seconds": 1.5,
}  # fmt: skip
CLEAN = {**ROW, "threat": "clean", "eps": "0", "attack": None}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"title": "a table", "results": rows}))
    return path


def test_rows_about_that_version_alone_become_results_in_their_order(tmp_path: Path) -> None:
    others: list[dict[str, Any]] = [
        {**ROW, "prompt_set": "demo@000000000000"},
        {**ROW, "prompt_set": "a photo of a {}."},
        {**ROW, "defense": "jpeg:75"},
        {**ROW, "classes": "base", "among": "these"},
    ]
    found = read_results(written(tmp_path / "table.json", *others[:2], ROW, *others[2:], CLEAN), REF)
    facts = {name: ROW[name] for name in Result.model_fields}
    assert found == (Result(**facts), Result(**facts | {"threat": "clean", "eps": "0", "attack": None}))
    assert {type(one) for one in found} == {Result}


def test_the_attack_says_in_which_precision_it_searched(tmp_path: Path) -> None:
    (found,) = read_results(written(tmp_path / "table.json", {**ROW, "search": "bfloat16"}), REF)
    assert found.attack == {"kind": "pgd", "steps": 100, "search": "bfloat16"}


def test_a_file_about_others_says_about_whom(tmp_path: Path) -> None:
    rows = [{**ROW, "prompt_set": f"other-{number}@3f9c21d07b1e"} for number in range(6)]
    path = written(tmp_path / "table.json", *rows, {**ROW, "prompt_set": "demo@000000000000"})
    with pytest.raises(
        InvalidInput,
        match=r"nothing about demo@3f9c21d07b1e.*It is about demo@000000000000, other-0@.* and 2 more",
    ) as refused:
        read_results(path, REF)
    assert refused.value.field == "--results"
    with pytest.raises(InvalidInput, match="about nothing"):
        read_results(written(tmp_path / "empty.json"), REF)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "decode"),
        (b"[" * 100_000, "no evaluation"),
        (b"[]", "no evaluation"),
        (b'{"format": 1, "candidates": []}', "results: Field required"),
        (json.dumps({"results": [{**ROW, "accuracy": 1.5}]}).encode(), "results/0/accuracy"),
        (json.dumps({"results": [{**ROW, "attack": {"steps": 100}}]}).encode(), "results/0/attack"),
        (json.dumps({"results": [{**ROW, "attack": {"kind": "pgd", "step": float("nan")}}]}).encode(),
        "no evaluation"),
        (json.dumps({"results": [{key: value for key, value in ROW.items() if key != "threat"}]}).encode(),
        "results/0/threat: Field required"),
    ],
)  # fmt: skip
def test_what_is_no_evaluation_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=why) as refused:
        read_results(path, REF)
    assert refused.value.field == "--results"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(InvalidInput, match="can't be read") as refused:
            read_results(path, REF)
        assert refused.value.field == "--results"


def test_the_same_measurement_counts_once_and_the_first_stays() -> None:
    one = Result(**{name: ROW[name] for name in Result.model_fields})
    again, other = (
        one.model_copy(update={"accuracy": 0.6}),
        one.model_copy(update={"attack": {"kind": "pgd", "steps": 10}}),
    )
    wider = one.model_copy(update={"n": 512})  # other pictures
    assert joined([other], [one, again, other, wider]) == (other, one, wider)
    assert joined([], [again, one]) == (again,)
