"""The two commands that decide without a server."""

import json
from pathlib import Path

import pytest
import torch

from robustclip.errors import InvalidInput, RobustClipError
from robustclip.images import pixels_to_png
from service.local.classify import main as classify
from service.local.probe import main as probe

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


def test_a_witness_written_by_probe_is_classified_otherwise(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    witness = tmp_path / "witness.png"
    assert probe([str(picture), *LABELS, "--eps", "16/255", "--out", str(witness), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"]["value"] == "broken"
    classify([str(witness), *LABELS, "--json"])
    assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] != report["input"]["clean"]["label"]


def test_probe_says_in_words_what_happened(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe([str(picture), *LABELS, "--eps", "1e-6", "--defense", "bit_depth:4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("not-broken-within-budget: No attack tried up to 1e-06")
    assert "knows the defense" in out


def test_a_preset_and_the_smallest_radius_are_told_in_words(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "--preset",
        "quick",
        "--minimal",
        "--oblivious",
        "--transfer-from",
        "handcrafted-ensemble",
        "--progress",
    ]
    assert probe([str(picture), *LABELS, "--eps", "16/255", *asked]) == 1
    told = capsys.readouterr()
    assert "smallest radius: " in told.out
    assert "which proves nothing" in told.out
    assert "pgd, oblivious" in told.out
    lines = told.err.splitlines()
    assert "charged passes at most" in lines[0]
    assert any(line.startswith("witness as PNG: ") for line in lines)


def test_nothing_is_said_on_the_way_unless_asked_for(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe([str(picture), *LABELS, "--eps", "16/255", "--steps", "1", "--json"])
    assert capsys.readouterr().err == ""


def test_a_deadline_gives_what_was_found_so_far(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        probe([str(picture), *LABELS, "--eps", "1e-6", "--preset", "thorough", "--deadline", "0.2", "--json"])
        == 2
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"]["reason"], report["cut"]) == ("deadline", "deadline")
    assert report["input"]["clean"]["label"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--labels", "cat"], "labels"),
        (["--prompt-set", "../../etc"], "prompt_set"),
        (["--eps", "NaN"], "--eps"),
        (["--eps", "0"], "--eps"),
        (["--eps", "2"], "--eps"),
        (["--eps", "1e9", "--norm", "l2"], "--eps"),
        (["--steps", "0"], "--steps"),
        (["--steps", "10001"], "--steps"),
        (["--steps", "5", "--preset", "quick"], "--steps"),
        (["--restarts", "1", "--preset", "quick"], "--restarts"),
        (["--attack", "magic"], "--attack"),
        (["--attack", '{"kind": "pgd", "steps": 0}'], "--attack"),
        (["--attack", '{"kind": "pgd", "ball": 1}'], "--attack"),
        (["--attack", "{kind: pgd}"], "--attack"),
        (["--attack", "pgd", "--eps", "2"], "--eps"),
        (["--attack", "pgd", "--preset", "quick"], "--attack"),
        (["--attack", "pgd", "--steps", "5"], "--steps"),
        (["--deadline", "nan"], "--deadline"),
        (["--seed", "-1"], "--seed"),
        (["--transfer-from", "nowhere"], "prompt_set"),
        (["--defense", "magic"], "--defense"),
        (["--true-label", "cow"], "--true-label"),
        (["--target-label", "cow"], "--target-label"),
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


def test_classify_tells_the_votes_of_a_smoothed_rule_and_when_they_prove_nothing(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify([str(picture), *LABELS, "--defense", "smoothing:0.001", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["smoothing"]["counts"] == {found["predictions"][0]["label"]: 100}
    assert found["predictions"][0]["score"] == 1.0
    assert (
        classify([str(picture), "--labels", "sky,boat", "--backbone", "tiny", "--defense", "smoothing:4"])
        == 0
    )  # noise alone: a coin's toss
    spoken = capsys.readouterr().out
    assert "abstains: " in spoken
    assert "of 100 votes prove no majority" in spoken
