"""`robustclip replay`, from the reports that `robustclip probe` prints."""

import json
from pathlib import Path

import pytest
import torch

from robustclip.errors import InvalidInput, ReportRefused, RobustClipError
from robustclip.images import pixels_to_png
from service.local.probe import main as probe
from service.local.replay import main

TINY = ["--backbone", "tiny"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two broken decisions and a standing one."""
    folder = tmp_path_factory.mktemp("reports")
    for seed, eps in ((0, "16/255"), (1, "16/255"), (2, "1e-6")):
        picture = folder / f"{seed}.png"
        picture.write_bytes(
            pixels_to_png(torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(seed)))
        )
        with pytest.MonkeyPatch.context() as patch:
            lines: list[str] = []
            patch.setattr("builtins.print", lines.append)
            probe([str(picture), "--labels", "cat,dog,car", *TINY, "--eps", eps, "--steps", "5", "--json"])
        (folder / f"{seed}.json").write_text(lines[0])
    return folder


def test_witnesses_still_fool_the_set_they_were_made_for(
    reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(reports), *TINY]) == 1
    told = capsys.readouterr().out
    assert told.startswith("2 of 2 witnesses fool handcrafted@")
    assert "0.json#/attacks/0" in told


def test_json_says_which_and_what_was_asked(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(
        [
            str(reports / "0.json"),
            str(reports / "1.json"),
            *TINY,
            "--defense",
            "resize_pad",
            "--draws",
            "8",
            "--json",
        ]
    ) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "robustclip.replay/1"
    assert found["prompt_set"].startswith("handcrafted@")
    assert [part["kind"] for part in found["defense"]] == ["resize_pad"]
    assert [each["rate"]["draws"] for each in found["judged"]] == [8, 8]
    assert found["counted"] == [each["source"] for each in found["judged"] if each["fooled"]]


def test_against_itself_nothing_is_new(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(reports), *TINY, "--against", "handcrafted"]) == 0
    assert "0 of them anew" in capsys.readouterr().out


def test_reports_without_a_witness_are_no_green_light(reports: Path) -> None:
    with pytest.raises(InvalidInput, match="no witness in these reports"):
        main([str(reports / "2.json"), *TINY])


@pytest.mark.parametrize(
    "content", ["{}", '{"schema": "robustclip.probe/1"', '{"schema": "robustclip.probe/2"}']
)
def test_a_foreign_or_damaged_report_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "strange.json").write_text(content)
    with pytest.raises(ReportRefused, match=r"strange\.json"):
        main([str(tmp_path), *TINY])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (["--draws", "0"], "--draws"),
        (["--prompt-set", "nowhere"], "prompt_set"),
        (["--against", "nowhere"], "prompt_set"),
        (["--defense", "x"], "--defense/0"),
    ],
)
def test_bad_options_name_themselves(reports: Path, change: list[str], field: str) -> None:
    with pytest.raises(RobustClipError) as refusal:
        main([str(reports), *TINY, *change])
    assert refusal.value.field == field


def test_witnesses_of_another_backbone_are_refused(reports: Path) -> None:
    with pytest.raises(ReportRefused, match="made at 32 pixels"):
        main([str(reports), "--backbone", "mini"])
