"""`robustclip certify`: what it says, what it keeps, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robustclip.errors import RobustClipError
from robustclip.images import pixels_to_png
from service.local.certify import main
from service.local.probe import main as probe

COMMON = ["--labels", "cat,dog,car", "--backbone", "tiny", "--n", "200", "--n0", "20"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(pixels_to_png(torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "var" / "noise"


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    status = main([*COMMON, "--json", *argv])
    return status, json.loads(capsys.readouterr().out)


def test_a_certificate_is_the_same_from_the_cache_and_without_one(
    picture: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first = told(capsys, str(picture), "--sigma", "0.1", "--defense", "bit_depth:4")
    kept = sorted(cache.glob("*/*"))
    assert [path.name for path in kept] == ["noise-0.question", "noise-0.safetensors"]
    stamps = [path.stat().st_mtime_ns for path in kept]
    _, again = told(capsys, str(picture), "--defense", "smoothing:0.1,bit_depth:4")
    assert again == first
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    _, without = told(capsys, str(picture), "--sigma", "0.1", "--defense", "bit_depth:4", "--no-cache")
    assert first["certificates"][0]["exploratory"] is False
    assert without["certificates"][0] == first["certificates"][0] | {"exploratory": None}
    assert first["defense"] == [{"kind": "smoothing", "sigma": 0.1}, {"kind": "bit_depth", "bits": 4}]


def test_other_labels_from_the_same_noise_are_exploratory_until_confirmed(
    picture: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, str(picture))
    _, second = told(capsys, str(picture), "--labels", "cat,dog")
    _, confirmed = told(capsys, str(picture), "--labels", "cat,dog", "--confirm")
    assert second["certificates"][0]["exploratory"] is True
    assert confirmed["certificates"][0]["exploratory"] is False
    assert sorted(path.name for path in cache.glob("*/*.safetensors")) == [
        "noise-0.safetensors",
        "noise-1.safetensors",
    ]


def test_several_lists_share_the_noise_and_alpha(
    picture: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = told(capsys, str(picture), "--also", "cat,dog", "--also", "sky,boat", "--alpha", "0.003")
    assert [certificate["labels"] for certificate in found["certificates"]] == [
        ["cat", "dog", "car"],
        ["cat", "dog"],
        ["sky", "boat"],
    ]
    assert [certificate["alpha"] for certificate in found["certificates"]] == pytest.approx([0.001] * 3)
    assert len(list(cache.glob("*/*.safetensors"))) == 1


def test_words_claim_no_more_than_was_certified(
    picture: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMON, str(picture), "--sigma", "0.001", "--no-cache"]) == 0
    said = capsys.readouterr().out
    assert "holds within 0.001 (L2), 0.008/255 in every value: 200 of 200 votes" in said
    assert main([*COMMON, str(picture), "--labels", "sky,boat", "--sigma", "4", "--no-cache"]) == 1
    assert "prove no majority" in capsys.readouterr().out


def test_the_noise_can_be_taken_away_before_each_vote(
    picture: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = told(capsys, str(picture), "--sigma", "0.3", "--denoise", "tiny")
    _, plain = told(capsys, str(picture), "--sigma", "0.3")
    assert found["defense"] == [{"kind": "smoothing", "sigma": 0.3, "denoise": "tiny"}]
    assert plain["defense"] == [{"kind": "smoothing", "sigma": 0.3}]
    assert len(list(cache.glob("*/*.safetensors"))) == 2
    _, again = told(
        capsys, str(picture), "--defense", '[{"kind": "smoothing", "sigma": 0.3, "denoise": "tiny"}]'
    )
    assert again == found


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (["--denoise", "theirs"], "--denoise"),
        (["--defense", "smoothing:0.1", "--denoise"], "--denoise"),
        (["--sigma", "0"], "--sigma"),
        (["--sigma", "nan"], "--sigma"),
        (["--n", "0"], "--n"),
        (["--n", "1000001"], "--n"),
        (["--n0", "0"], "--n0"),
        (["--alpha", "0.5"], "--alpha"),
        (["--seed", "-1"], "--seed"),
        (["--defense", "smoothing:0.1", "--sigma", "0.2"], "--sigma"),
        (["--defense", "jpeg,smoothing"], "--defense/1"),
        (["--also", "cat"], "--also"),
        (["--confirm", "--no-cache"], "--confirm"),
    ],
)
def test_bad_options_name_themselves(picture: Path, cache: Path, change: list[str], field: str) -> None:
    with pytest.raises(RobustClipError) as refusal:
        main([*COMMON, str(picture), *change])
    assert refusal.value.field == field
    assert not cache.exists()


def test_a_cache_that_is_no_folder_is_refused(picture: Path, tmp_path: Path) -> None:
    with pytest.raises(RobustClipError, match="can't be used"):
        main([*COMMON, str(picture), "--cache", str(picture)])


def test_a_probe_certifies_the_vote_that_it_attacked(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        str(picture),
        *COMMON[:4],
        "--defense",
        "smoothing:0.001",
        "--norm",
        "l2",
        "--eps",
        "0.0001",
        "--steps",
        "1",
        "--certify",
        "40",
    ]
    assert probe(asked) == 0
    said = capsys.readouterr().out
    assert said.startswith("certified: No change up to 0.0001 (L2) turns the vote from")
    assert "certificate: " in said
    assert "40 of 40 votes at sigma 0.001" in said


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (["--certify", "0"], "--certify"),
        (["--certify", "--sigma", "0"], "--sigma"),
        (["--sigma", "1"], "--sigma"),
    ],
)
def test_a_probe_refuses_what_can_not_be_certified_with(picture: Path, change: list[str], field: str) -> None:
    with pytest.raises(RobustClipError) as refusal:
        probe([str(picture), *COMMON[:4], *change])
    assert refusal.value.field == field
