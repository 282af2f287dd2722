"""The two commands that decide without a server."""

import json
from pathlib import Path

import pytest
import torch

from robustclip.errors import InvalidInput, RobustClipError
from robustclip.images import pixels_to_png
from service.local import classify, probe

LABELS = ["--labels", "cat,dog,car", "--backbone", "tiny"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(pixels_to_png(torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))))
    return path


def test_classify_prints_labels_best_first(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify([str(picture), str(picture), *LABELS, "--json", "--top-k", "2"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == second
    scores = [prediction["score"] for prediction in first["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2
    assert first["prompt_set"].startswith("handcrafted@")


def test_a_witness_written_by_probe_is_classified_otherwise(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    witness = tmp_path / "witness.png"
    assert probe([str(picture), *LABELS, "--eps", "16/255", "--out", str(witness), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"]["value"] == "broken"
    classify([str(witness), *LABELS, "--json"])
    assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] != report["input"]["clean"]["label"]


def test_probe_says_in_words_what_happened(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe([str(picture), *LABELS, "--eps", "0", "--defense", "bit_depth:4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("not-broken-within-budget: No attack tried up to 0")
    assert "knows the defense" in out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--labels", "cat"], "labels"),
        (["--prompt-set", "../../etc"], "prompt_set"),
        (["--eps", "NaN"], "attacks/0/ball/radius"),
        (["--defense", "magic"], "--defense"),
        (["--true-label", "cow"], "true_label"),
        (["--backbone", "ViT-Z"], "clip.arch"),
    ],
)
def test_bad_options_name_themselves(picture: Path, change: list[str], named: str) -> None:
    with pytest.raises(RobustClipError) as refusal:
        probe([str(picture), *LABELS, *change])
    assert refusal.value.field is not None
    assert named in refusal.value.field


def test_a_missing_picture_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.png can't be read"):
        classify(["nowhere.png", *LABELS])
