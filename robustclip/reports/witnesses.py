"""Witnesses: pictures that change a decision, read from probe reports.

Reports may come from anywhere. All that can be checked is checked: schema, labels, the picture's digest and
size.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pydantic import ValidationError
from pydantic_core import from_json
from torch import Tensor

from robustclip.errors import ImageRefused, InvalidInput, ReportRefused, invalid_input
from robustclip.images import decode_image
from robustclip.preprocessing import to_pixels
from robustclip.reports.report import SCHEMA, AttackRecord, ProbeReport
from robustclip.threat import Norm

MAX_BYTES = 64 * 2**20

# What float32 may add to a change that keeps to a radius: absolute for Linf, relative for L2.
_SLACK = 1e-6


@dataclass(frozen=True, eq=False)
class Witness:
    """One attack's picture, `levels` [3, S, S] uint8, with the report it stands in; `source` says where that
    is.
    """

    source: str
    report: ProbeReport
    record: AttackRecord
    levels: Tensor


class Collection(NamedTuple):
    """What a number of reports hold.

    `pictureless` names successful attacks that left no PNG: only their float pixels succeed, or the PNG was
    not requested.
    """

    witnesses: tuple[Witness, ...]
    pictureless: tuple[str, ...]


def collect(paths: Iterable[Path]) -> Collection:
    """The witnesses of report files, and of all `*.json` in folders, in the order of names.

    Of two equal pictures with equal questions the first is taken. Raises ReportRefused, which names the file.
    """
    witnesses: dict[tuple[object, ...], Witness] = {}
    pictureless: list[str] = []
    for path in _files(paths):
        for number, report in enumerate(read_reports(path)):
            for index, record in enumerate(report.attacks):
                source = _place(path, f"/reports/{number}/attacks/{index}" if number else f"/attacks/{index}")
                if record.success_8bit and record.adversarial_png is not None:
                    question = (
                        record.witness_sha256,
                        report.victim.labels,
                        report.victim.scoring,
                        report.input.true_label,
                        report.input.target_label,
                    )
                    witnesses.setdefault(question, _witness(source, report, record))
                elif record.success or record.success_8bit:
                    pictureless.append(source)
    return Collection(tuple(witnesses.values()), tuple(pictureless))


def read_reports(path: Path) -> tuple[ProbeReport, ...]:
    """The report in a file, or those in a saved answer of `POST /probe`.

    Raises ReportRefused for anything else, with the place that is wrong.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ReportRefused(
                f"expected at most {MAX_BYTES} bytes, found {path.stat().st_size}.", field=str(path)
            )
        data: Any = from_json(path.read_bytes())
    except OSError as error:
        raise ReportRefused(f"it can't be read: {error.strerror}.", field=str(path)) from error
    except ValueError as error:
        raise ReportRefused(
            f"it is not JSON, or was cut off ({error}).",
            field=str(path),
            help="Write it again with `robustclip probe --json`.",
        ) from error
    if isinstance(data, dict) and isinstance(inside := cast(dict[str, Any], data).get("reports"), list):
        return tuple(
            _report(each, path, f"/reports/{number}") for number, each in enumerate(cast(list[Any], inside))
        )
    return (_report(data, path, ""),)


def best_record(report: ProbeReport) -> AttackRecord | None:
    """The attack to show: the witness with the smallest change, a PNG before float pixels.

    Without a witness it is the attack that came nearest to changing the decision.
    """
    return min(report.attacks, key=_rank, default=None)


def smallest_change(report: ProbeReport, norm: Norm) -> float | None:
    """The size of the smallest change that is known to reach the goal, in that norm and pixel units.

    0 if the clean picture is wrong already; None without a witness.
    """
    if report.verdict.reason == "clean-wrong":
        return 0.0
    sizes = [size_of(record, norm) for record in report.attacks if record.success or record.success_8bit]
    bracket = report.minimal_radius
    if bracket is not None and bracket.norm == norm and bracket.broken is not None:
        sizes.append(bracket.broken)
    return min(sizes, default=None)


def is_within(size: float | None, radius: float) -> bool:
    """Whether a change of that size keeps to a radius, up to float32; None is no change."""
    return size is not None and size <= radius * (1 + _SLACK) + _SLACK


def size_of(record: AttackRecord, norm: Norm) -> float:
    """How far the shown picture of an attack is from the clean one."""
    return record.l2 if norm == "l2" else record.linf


def norm_of(record: AttackRecord) -> Norm:
    """The norm of the ball that an attack kept to."""
    return "l2" if _ball(record).get("kind") == "l2" else "linf"


def radius_of(record: AttackRecord) -> float | None:
    """The radius of the ball that an attack kept to, in pixel units; None where its parameters name none."""
    radius = _ball(record).get("radius")
    return float(radius) if isinstance(radius, int | float) else None


def _ball(record: AttackRecord) -> dict[str, Any]:
    ball = record.params.get("ball")
    return cast(dict[str, Any], ball) if isinstance(ball, dict) else {}


def _rank(record: AttackRecord) -> tuple[bool, bool, float]:
    if record.success_8bit or record.success:
        return not record.success_8bit, False, size_of(record, norm_of(record))
    return True, True, -record.margin


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(path.glob("*.json"))
        else:
            yield path


def _report(data: object, path: Path, pointer: str) -> ProbeReport:
    place = _place(path, pointer)
    if not isinstance(data, dict):
        raise ReportRefused(f"expected a JSON object, found {type(data).__name__}.", field=place)
    schema = cast(dict[str, Any], data).get("schema")
    if schema != SCHEMA:
        raise ReportRefused(
            f"expected the schema {SCHEMA!r}, found {schema!r:.60}.",
            field=place,
            help="Probe again with this version.",
        )
    try:
        return ProbeReport.model_validate(data)
    except ValidationError as error:
        complaint = invalid_input(error, data)
        raise ReportRefused(
            complaint.message, field=_place(path, f"{pointer}/{complaint.field or ''}")
        ) from error


def _place(path: Path, pointer: str) -> str:
    """A JSON pointer into a file."""
    return f"{path}#{pointer}" if pointer else str(path)


def _witness(source: str, report: ProbeReport, record: AttackRecord) -> Witness:
    """A record's picture, checked against everything that the report says of it."""
    question = report.input
    try:
        answers = report.victim.outcomes
    except InvalidInput as error:
        raise ReportRefused(error.message, field=source) from error
    for label in (question.true_label, question.target_label):
        if label is not None and label not in answers:
            raise ReportRefused(f"{label!r:.60} is not among its labels.", field=source)
    try:
        png = base64.b64decode(record.adversarial_png or "", validate=True)
        image = decode_image(png)
    except (binascii.Error, ImageRefused) as error:
        raise ReportRefused(f"its picture can't be decoded: {error}", field=source) from error
    if hashlib.sha256(png).hexdigest() != record.witness_sha256:
        raise ReportRefused("its picture is not the one that was judged: the digests differ.", field=source)
    if (image.height, image.width) != question.resolution or image.height != image.width:
        raise ReportRefused(
            f"expected a picture of {question.resolution}, found {image.height} x {image.width}.",
            field=source,
        )
    return Witness(source, report, record, (to_pixels(image, image.width) * 255).round().to(torch.uint8))
