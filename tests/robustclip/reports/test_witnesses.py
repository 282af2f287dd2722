"""Reports from files: those of a probe give back their pictures, everything else is refused by the name of
the file and the place in it.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from probed import Probed, probed, stored

from robustclip.errors import ReportRefused
from robustclip.images import pixels_to_png
from robustclip.models.clip import Clip
from robustclip.reports.report import ProbeReport
from robustclip.reports.witnesses import best_record, collect, is_within, read_reports, smallest_change


@pytest.fixture(scope="module")
def broken(tiny: Clip) -> Probed:
    return probed(tiny, radii=(2, 8))


def test_a_stored_report_comes_back_as_it_was(broken: Probed, tmp_path: Path) -> None:
    assert read_reports(stored(broken.report, tmp_path / "report.json")) == (broken.report,)


def test_a_witness_is_the_picture_that_was_judged(broken: Probed, tmp_path: Path) -> None:
    found = collect([stored(broken.report, tmp_path / "report.json")])
    successes = [record for record in broken.report.attacks if record.success_8bit]
    assert [witness.record for witness in found.witnesses] == successes
    for witness in found.witnesses:
        assert (
            base64.b64encode(pixels_to_png(witness.levels / 255)).decode() == witness.record.adversarial_png
        )
        moved = (witness.levels / 255 - broken.clean).abs().max().item()
        assert moved == pytest.approx(witness.record.linf, abs=1e-6)


def test_a_saved_answer_of_the_service_holds_all_its_reports(broken: Probed, tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(
        json.dumps({"object": "probe", "reports": [broken.report.model_dump(mode="json", by_alias=True)] * 2})
    )
    assert len(read_reports(path)) == 2
    assert len(collect([path]).witnesses) == len(
        collect([stored(broken.report, tmp_path / "one.json")]).witnesses
    ), "the same picture counts once"


def test_a_folder_is_read_in_the_order_of_names(tiny: Clip, broken: Probed, tmp_path: Path) -> None:
    stored(probed(tiny, seed=3, radii=(16,)).report, tmp_path / "b.json")
    stored(broken.report, tmp_path / "a.json")
    (tmp_path / "notes.txt").write_text("no report")
    names = [Path(witness.source.partition("#")[0]).name for witness in collect([tmp_path]).witnesses]
    assert names == sorted(names)
    assert set(names) == {"a.json", "b.json"}


def test_successes_without_a_picture_are_named(tiny: Clip, tmp_path: Path) -> None:
    report = probed(tiny, include=()).report
    assert report.verdict.value == "broken"
    found = collect([stored(report, tmp_path / "report.json")])
    assert found.witnesses == ()
    assert len(found.pictureless) == sum(record.success for record in report.attacks)


def change(*path: str | int, to: object) -> Callable[[Any], None]:
    def apply(data: Any) -> None:
        for part in path[:-1]:
            data = data[part]
        data[path[-1]] = to

    return apply


PICTURE = ("attacks", 0, "adversarial_png")
OTHER = base64.b64encode(pixels_to_png(torch.zeros(3, 32, 32))).decode()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            change("schema", to="robustclip.probe/2"),
            r"report.json: expected the schema 'robustclip.probe/1', found 'robustclip.probe/2'",
        ),
        (lambda data: data.pop("schema"), "expected the schema"),
        (lambda data: data.pop("victim"), r"report.json#/victim: Field required"),
        (change("surprise", to=1), r"report.json#/surprise: Extra inputs"),
        (change("attacks", 0, "margin", to="much"), r"report.json#/attacks/0/margin: "),
        (change("attacks", to={}), r"report.json#/attacks: "),
        (change("input", "true_label", to="cow"), r"report.json#/attacks/0: 'cow' is not among its labels"),
        (change(*PICTURE, to="no base64!"), r"report.json#/attacks/0: its picture can't be decoded"),
        (change(*PICTURE, to=base64.b64encode(b"GIF89a").decode()), r"its picture can't be decoded"),
        (change(*PICTURE, to=OTHER), r"the digests differ"),
        (change("input", "resolution", to=[64, 64]), r"expected a picture of \(64, 64\), found 32 x 32"),
    ],
)
def test_a_report_that_is_not_what_it_says_is_refused_with_the_place(
    broken: Probed, tmp_path: Path, edit: Callable[[Any], None], said: str
) -> None:
    data = broken.report.model_dump(mode="json", by_alias=True)
    data["attacks"] = [attack for attack in data["attacks"] if attack["success_8bit"]]
    edit(data)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ReportRefused, match=said):
        collect([path])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": "robustclip.probe/1"',
        b"[]",
        b"null",
        b'{"reports": [3]}',
        b"{}",
    ],
)
def test_what_is_no_report_is_refused_by_the_name_of_its_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "strange.json"
    path.write_bytes(content)
    with pytest.raises(ReportRefused, match=r"strange\.json"):
        read_reports(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_report_is_refused(broken: Probed, tmp_path: Path, share: float) -> None:
    path = stored(broken.report, tmp_path / "report.json")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ReportRefused, match="not JSON, or was cut off"):
        read_reports(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ReportRefused, match=r"nowhere\.json: it can't be read"):
        collect([tmp_path / "nowhere.json"])


def test_the_smallest_change_is_that_of_the_least_conspicuous_witness(tiny: Clip, broken: Probed) -> None:
    sizes = [record.linf for record in broken.report.attacks if record.success or record.success_8bit]
    assert smallest_change(broken.report, "linf") == min(sizes)
    record = best_record(broken.report)
    assert record is not None
    assert record.linf == min(sizes)
    assert smallest_change(probed(tiny, radii=(0.001,)).report, "linf") is None


def test_a_clean_picture_that_is_wrong_needs_no_change(tiny: Clip, broken: Probed) -> None:
    truth = next(label for label in broken.report.victim.labels if label != broken.report.input.clean.label)
    assert smallest_change(probed(tiny, radii=(0.001,), true_label=truth).report, "linf") == 0


@pytest.mark.parametrize(
    ("levels", "radius", "expected"), [(1, 1, True), (1, 0.99, False), (4, 4, True), (2, 1, False)]
)
def test_a_change_of_a_whole_level_is_within_that_radius(levels: int, radius: float, expected: bool) -> None:
    assert (
        is_within((torch.tensor(levels / 255) + torch.tensor(0.3) - torch.tensor(0.3)).item(), radius / 255)
        is expected
    )
    assert not is_within(None, radius / 255)


def test_without_a_witness_the_nearest_attempt_is_shown(tiny: Clip) -> None:
    report: ProbeReport = probed(tiny, radii=(0.001, 0.002)).report
    record = best_record(report)
    assert record is not None
    assert record.margin == max(each.margin for each in report.attacks)
