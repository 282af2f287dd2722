"""A record of how settings were chosen, and the refusal of one that test pictures decided."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from training.data.sampling import HELD_OUT
from training.learning.tuning.selection import Selection, check_carried, load_selection


def number(
    accuracy: float, *, threat: str = "T2", data: str = "toys", split: str = HELD_OUT
) -> dict[str, Any]:
    command = f"robustclip evaluate --prompt-set a@1 --data toys --split {split} --threat {threat}"
    about = {
        "data": data,
        "split": split,
        "seed": 0,
        "threat": threat,
        "eps": "1/255",
        "n": 10,
        "command": command,
    }
    return {**about, "accuracy": accuracy, "low": accuracy, "high": accuracy}


def record(**changes: Any) -> dict[str, Any]:
    """Three alphas, of which the second is best under T2 and the third has the best harmonic mean."""
    shares = ((0.0, 0.5, 0.30), (0.5, 0.4, 0.36), (1.0, 0.9, 0.32))
    candidates = [
        {
            "settings": {"alpha": alpha},
            "objective": {"kind": "capt", "alpha": alpha, "alpha_rule": "constant"},
            "numbers": [number(clean, threat="clean"), number(attacked)],
            "ahead": None if not alpha else {"value": 0.06, "low": -0.01, "high": 0.1},
        }
        for alpha, clean, attacked in shares
    ]
    judged = {"data": "toys", "split": HELD_OUT, "digest": "0" * 64, "n": 10}
    return {
        "clip": {"arch": "tiny", "pretrained": "none", "fingerprint": "1" * 64},
        "over": ["alpha"],
        "by": "T2",
        "keep_first": False,
        "shots": 16,
        "seeds": [0],
        "max_passes": 0,
        "steps": 20,
        "judged_on": [judged],
        "candidates": candidates,
        "chosen": {"alpha": 0.5},
        "command": "robustclip select --objective capt --over alpha=0,0.5,1",
        **changes,
    }


def written(folder: Path, values: object) -> Path:
    path = folder / "record.json"
    path.write_text(json.dumps(values))
    return path


def test_a_record_gives_the_winners_settings(tmp_path: Path) -> None:
    found = load_selection(written(tmp_path, record()))
    assert found.objective == {"kind": "capt", "alpha": 0.5, "alpha_rule": "constant"}
    assert found.carried().over == ("alpha",)


@pytest.mark.parametrize("split", ["test", "val", "validation", "train", "all"])
def test_a_record_that_names_other_pictures_than_held_out_ones_is_refused_by_field(
    tmp_path: Path, split: str
) -> None:
    judged = {**record()["judged_on"][0], "split": split}
    with pytest.raises(InvalidInput, match="never on a test or validation file") as refused:
        load_selection(written(tmp_path, record(judged_on=[judged])))
    assert refused.value.field == f"{tmp_path / 'record.json'}/judged_on/0/split"


def test_so_is_a_number_and_a_command_on_other_pictures(tmp_path: Path) -> None:
    candidates = record()["candidates"]
    candidates[1]["numbers"][1] = number(0.36, split="test")
    with pytest.raises(InvalidInput) as refused:
        load_selection(written(tmp_path, record(candidates=candidates)))
    assert str(refused.value.field).endswith("candidates/1/numbers/1/split")
    with pytest.raises(InvalidInput) as refused:
        load_selection(written(tmp_path, record(command="robustclip evaluate --split test")))
    assert str(refused.value.field).endswith("record.json/command")


def test_the_numbers_decide_who_was_chosen() -> None:
    assert Selection.model_validate(record(by="harmonic", chosen={"alpha": 1.0})).chosen == {"alpha": 1.0}
    assert Selection.model_validate(record(keep_first=True, chosen={"alpha": 0.0})).chosen == {"alpha": 0.0}
    for wrong in (
        {"chosen": {"alpha": 1.0}},
        {"by": "harmonic"},
        {"keep_first": True},
        {"chosen": {"alpha": 7}},
    ):
        with pytest.raises(ValidationError, match="not the candidate that the numbers name"):
            Selection.model_validate(record(**wrong))


def test_a_candidate_that_failed_is_not_chosen() -> None:
    candidates = record()["candidates"]
    candidates[1] |= {"numbers": [], "why": "collapsed"}
    assert (
        Selection.model_validate(record(candidates=candidates, chosen={"alpha": 1.0})).objective["alpha"]
        == 1.0
    )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2}'])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(InvalidInput) as refused:
        load_selection(path)
    assert str(path) in str(refused.value.field)
    with pytest.raises(InvalidInput, match="can't be read"):
        load_selection(tmp_path / "none.json")


def test_a_published_set_carries_where_its_settings_were_chosen() -> None:
    assert check_carried({"kind": "coop"}, ref="a@1") is None
    carried = Selection.model_validate(record()).carried().model_dump(mode="json")
    assert (
        check_carried({"kind": "capt", "selection": carried}, ref="a@1")
        == Selection.model_validate(record()).carried()
    )
    carried["judged_on"][0]["split"] = "test"
    with pytest.raises(InvalidInput) as refused:
        check_carried({"kind": "capt", "selection": carried}, ref="a@1")
    assert refused.value.field == "a@1/objective/selection/judged_on/0/split"


def test_the_records_that_are_committed_are_valid() -> None:
    committed = sorted((Path(str(files("training"))) / "results").glob("select-*.json"))
    assert {path.stem for path in committed} >= {"select-apt", "select-capt", "select-apd"}
    for path in committed:
        load_selection(path)


def test_settings_that_were_chosen_for_another_clip_say_so(tiny: Clip) -> None:
    own = {"arch": tiny.arch, "pretrained": tiny.pretrained, "fingerprint": tiny.fingerprint}
    assert Selection.model_validate(record(clip=own)).borrowed_by(tiny) is None
    said = Selection.model_validate(
        record(clip={**own, "arch": "elder", "fingerprint": "1" * 64})
    ).borrowed_by(tiny)
    assert said == f"settings were chosen for elder (11111111), not for {tiny.arch} ({tiny.fingerprint[:8]})"


def test_sets_that_do_not_say_for_which_clip_their_settings_were_chosen_are_read_as_before() -> None:
    carried = Selection.model_validate(record()).carried().model_dump(mode="json")
    del carried["clip"]
    found = check_carried({"kind": "capt", "selection": carried}, ref="a@1")
    assert found is not None
    assert found.clip is None


def test_words_for_the_page_are_no_part_of_what_was_chosen(tmp_path: Path) -> None:
    plain = load_selection(written(tmp_path, record()))
    told = load_selection(written(tmp_path, record(title="Shares of the frozen CLIP", says="The half.")))
    assert (told.title, told.says) == ("Shares of the frozen CLIP", "The half.")
    assert told.carried() == plain.carried()
