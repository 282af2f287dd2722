"""`--scoring` of the commands without a server, and what they print."""

import json
from pathlib import Path
from typing import Any

import pytest
from serving import picture
from sigmoid import sigmoid_backbone

from robustclip.errors import InvalidInput
from robustclip.models.onnx import main as export
from robustclip.models.scoring import NONE
from service.local.certify import main as certify
from service.local.classify import main as classify
from service.local.probe import main as probe
from service.local.replay import main as replay


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["--backbone", str(sigmoid_backbone(tmp_path_factory.mktemp("biased")))]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    path.write_bytes(picture())
    return str(path)


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_classify_says_that_none_fits(
    photo: str, biased: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    classify([photo, "--labels", "teapot", *biased, "--json"])
    answer = told(capsys)
    assert (answer["scoring"], answer["none_of_these"]) == ("sigmoid", True)
    assert answer["predictions"][0]["score"] < 0.5
    classify([photo, "--labels", "teapot", *biased])
    assert f"{NONE}:  teapot" in capsys.readouterr().out
    classify([photo, "--labels", "teapot,dog", *biased, "--scoring", "softmax", "--json"])
    answer = told(capsys)
    assert answer["scoring"] == "softmax"
    assert "none_of_these" not in answer
    assert sum(each["score"] for each in answer["predictions"]) == pytest.approx(1, abs=1e-5)


def test_a_probe_finds_a_witness_and_replay_judges_it_under_its_scoring(
    photo: str, biased: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [photo, "--labels", "dog", *biased, "--eps", "32/255", "--steps", "10"]
    assert probe([*asked, "--json"]) == 1
    (tmp_path / "report.json").write_text(capsys.readouterr().out)
    assert replay([str(tmp_path), *biased, "--json"]) == 1
    (judged,) = told(capsys)["judged"]
    assert (judged["label"], judged["scoring"], judged["fooled"]) == (NONE, "sigmoid", True)
    assert replay([str(tmp_path), "--backbone", "tiny", "--json"]) == 0
    assert "no logit bias" in told(capsys)["skipped"][0]["reason"]
    page = tmp_path / "report.html"
    assert probe([*asked, "--html", str(page)]) == 1
    assert "(sigmoid)" in capsys.readouterr().out
    assert NONE in page.read_text()


def test_a_picture_that_shows_the_target_is_clean_wrong(
    photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [photo, "--labels", "cat,dog", "--backbone", "tiny"]
    classify([*asked, "--json"])
    clean = told(capsys)["predictions"][0]["label"]
    other = "cat" if clean == "dog" else "dog"
    log = tmp_path / "log.sarif"
    aimed = [*asked, "--true-label", other, "--target-label", clean]
    assert probe([*aimed, "--sarif", str(log)]) == 1
    assert capsys.readouterr().out.startswith(f"broken: The clean picture is already taken for {clean!r}")
    assert [each["ruleId"] for each in json.loads(log.read_text())["runs"][0]["results"]] == ["ROB030"]
    assert probe([*aimed, "--fail-below", "1/255"]) == 3
    wanted = [*asked, "--labels", "cat,dog,ship,car", "--true-label", other, "--target-label", "ship"]
    assert probe([*wanted, "--fail-below", "64/255", "--eps", "64/255"]) == 3, "it is attacked all the same"


def test_certify_may_be_about_none(photo: str, biased: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--n", "100", "--n0", "20", "--sigma", "0.02", "--no-cache", "--json"]
    certify([photo, "--labels", "teapot", "--also", "dog", *biased, *few])
    first, second = told(capsys)["certificates"]
    assert (first["labels"], first["scoring"], first["label"]) == (["teapot"], "sigmoid", NONE)
    assert second["label"] == "dog"


@pytest.mark.parametrize("command", [classify, probe, certify])
def test_sigmoid_needs_a_bias_and_softmax_two_labels(command: Any, photo: str, biased: list[str]) -> None:
    with pytest.raises(InvalidInput, match="no logit bias") as refusal:
        command([photo, "--labels", "cat,dog", "--backbone", "tiny", "--scoring", "sigmoid"])
    assert refusal.value.field == "--scoring"
    with pytest.raises(InvalidInput, match="at least 2 labels, found 1"):
        command([photo, "--labels", "cat", *biased, "--scoring", "softmax"])


def test_an_exported_graph_names_scale_and_bias(
    biased: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export([*biased, "--path", str(tmp_path / "tower.onnx"), "--json"])
    facts = told(capsys)
    assert (facts["logit_scale"], facts["logit_bias"]) == (pytest.approx(100, rel=1e-3), -4.0)
    session = onnxruntime.InferenceSession(str(tmp_path / "tower.onnx"), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert float(metadata["robustclip.logit_bias"]) == -4.0
    assert float(metadata["robustclip.logit_scale"]) == pytest.approx(100, rel=1e-3)
