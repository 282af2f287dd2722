"""What `robustclip probe` leaves behind, from the command's own arguments."""

import json
import re
from pathlib import Path

import pytest
import torch

from robustclip.errors import InvalidInput
from robustclip.images import pixels_to_png
from robustclip.reports.witnesses import read_reports
from service.local.probe import main as probe

LABELS = ["--labels", "cat,dog,<b>car</b>", "--backbone", "tiny"]
LARGE, SMALL = ["--eps", "16/255"], ["--eps", "1e-6"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture & more.png"
    path.write_bytes(pixels_to_png(torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))))
    return path


def test_one_run_leaves_a_page_a_log_a_picture_and_json(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, sarif, png = tmp_path / "new/report.html", tmp_path / "report.sarif", tmp_path / "witness.png"
    asked = [
        str(picture),
        *LABELS,
        *LARGE,
        "--html",
        str(html),
        "--sarif",
        str(sarif),
        "--out",
        str(png),
        "--json",
    ]
    assert probe(asked) == 1
    (tmp_path / "report.json").write_text(capsys.readouterr().out)
    (report,) = read_reports(tmp_path / "report.json")
    page = html.read_text()
    assert page.startswith("<!doctype html>")
    assert "a picture &amp; more.png" in page
    assert f"--eps 16/255 --html {html}" in page
    assert "<b>" not in page
    assert "How the attacks went" in page
    assert "Heat map over the picture" in page
    log = json.loads(sarif.read_text())
    assert log["runs"][0]["invocations"][0]["exitCode"] == 1
    assert [result["ruleId"] for result in log["runs"][0]["results"]] == ["ROB004"]
    assert report.attacks[0].adversarial_png is not None
    assert png.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {
        picture.name,
        "new",
        "report.sarif",
        "witness.png",
        "report.json",
    }


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ([*LARGE, "--fail-below", "16/255"], 3),
        ([*SMALL, "--fail-below", "16/255"], 3),  # tried, although nobody asked for it by --eps
        ([*LARGE, "--fail-below", "1e-6"], 0),
        ([*SMALL, "--fail-below", "1e-6"], 0),
        ([*LARGE], 1),
        ([*SMALL], 0),
        (["--norm", "l2", "--eps", "1e-6", "--fail-below", "3"], 3),
    ],
)
def test_the_exit_status_says_whether_a_witness_keeps_to_the_policy(
    picture: Path, asked: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe([str(picture), *LABELS, *asked, "--steps", "8"]) == status


@pytest.mark.parametrize(("policy", "status"), [("1e-6", 0), ("16/255", 3)])
def test_where_nobody_wants_a_report_only_what_decides_the_status_is_tried(
    picture: Path, policy: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(picture), *LABELS, "--eps", "32/255,16/255", "--steps", "8", "--fail-below", policy]
    assert probe([*asked, "--json"]) == status
    whole = json.loads(capsys.readouterr().out)
    assert probe(asked) == status
    told = capsys.readouterr().out
    spent = re.search(r"(\d+) charged passes, seed", told)
    assert spent is not None
    assert int(spent[1]) < whole["charged"] / (2 if status else 1), (
        "where nothing broke, checks still look for what the attack missed"
    )
    assert {record["params"]["ball"]["radius"] for record in whole["attacks"]} >= {32 / 255, 16 / 255}
    left_out = "32/255" if policy == "16/255" else "32/255, 16/255"
    assert f"not tried, since it can't change the exit status: {left_out} (" in told


def test_a_clean_picture_that_is_wrong_violates_any_policy(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe([str(picture), *LABELS, *SMALL, "--json"])
    decided = json.loads(capsys.readouterr().out)["input"]["clean"]["label"]
    truth = next(label for label in ("cat", "dog") if label != decided)
    assert probe([str(picture), *LABELS, *SMALL, "--true-label", truth, "--fail-below", "1e-9"]) == 3
    assert "1 charged passes" in capsys.readouterr().out, "and no attack was needed"


def test_several_radii_make_a_curve(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "report.html"
    probe(
        [str(picture), *LABELS, "--eps", "1/255, 4/255,8/255", "--steps", "3", "--html", str(html), "--json"]
    )
    report = json.loads(capsys.readouterr().out)
    assert [record["params"]["ball"]["radius"] for record in report["attacks"]] == pytest.approx(
        [1 / 255, 4 / 255, 8 / 255]
    )
    assert re.search(r"<figcaption>Margin by radius</figcaption>", html.read_text())


@pytest.mark.parametrize(
    ("asked", "flag"),
    [
        (["--html", "."], "--html"),
        (["--sarif", "report", "--html", "report"], "--sarif"),
        (["--fail-below", "much"], "--fail-below"),
        (["--fail-below", "-1"], "--fail-below"),
        (["--fail-below", "0"], "--fail-below"),
        (["--fail-below", "2"], "--fail-below"),
        (["--fail-below", "1/255", "--eps", "4/255,NaN"], "--eps"),
        (["--eps", "4/255,,"], "--eps"),
        (["--eps", "4/255,NaN"], "--eps"),
    ],
)
def test_a_bad_output_is_refused_before_any_work(picture: Path, asked: list[str], flag: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        probe([str(picture), *LABELS, *asked])
    assert refusal.value.field == flag


def test_a_file_that_can_t_be_written_is_named_and_leaves_nothing(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InvalidInput, match="can't be written") as refusal:
        probe([str(picture), *LABELS, *SMALL, "--html", str(tmp_path / "file/report.html")])
    assert refusal.value.field == "--html"
    assert (tmp_path / "file").read_text() == "no folder"
