"""A probe report as one HTML page that needs nothing else: it can be mailed, archived and printed.

This module turns a report into words and numbers; `templates/probe.html` lays them out.
"""

import base64
import json
from typing import Any, NamedTuple

from torch import Tensor

from robustclip.digests import levels_digest
from robustclip.errors import InvalidInput
from robustclip.images import load_pixels, pixels_to_png
from robustclip.reports.charts import Curve, chart
from robustclip.reports.html import render
from robustclip.reports.report import AttackRecord, Heat, ProbeReport
from robustclip.reports.witnesses import best_record, norm_of, radius_of
from robustclip.reports.wording import (
    VERDICTS,
    attack_words,
    bracket_words,
    certificate_words,
    flag_sentence,
    gap_sentence,
    named,
    question_sentence,
    trust_sentence,
)
from robustclip.threat import LEVELS, radius_text

_MIDDLE = 128  # the grey of a difference of zero


class _Picture(NamedTuple):
    title: str
    note: str
    alt: str
    png: str


def probe_page(report: ProbeReport, *, clean: Tensor, picture: str, command: str) -> str:
    """The page of a report.

    clean    [3, S, S] the attacked pixels, untouched; InvalidInput if they are not those of the report
    picture  what the user calls it
    command  what makes this report again, as it could be typed
    """
    if levels_digest(clean) != report.input.sha256:
        raise InvalidInput("these are not the pixels that the report is about.", field="clean")
    record = best_record(report)
    return render(
        "probe.html",
        verdict=VERDICTS[report.verdict.value],
        sentence=report.verdict.sentence,
        picture=picture,
        size=clean.shape[-1],
        pictures=_pictures(report, record, clean),
        missing=_missing(record),
        heat=None if record is None or record.heat is None else _heat(record.heat),
        question=question_sentence(report),
        attacks=[attack_words(each) for each in report.attacks],
        gap=gap_sentence(report),
        bracket=None if report.minimal_radius is None else bracket_words(report.minimal_radius),
        certificate=None if report.certificate is None else certificate_words(report.certificate),
        curves=_curves(report),
        trust=trust_sentence(report),
        fired=sorted((flag for flag in report.diagnostics if flag.fired), key=lambda flag: flag.severity),
        silent=[flag for flag in report.diagnostics if not flag.fired],
        flag_sentence=flag_sentence,
        known=_facts(report, picture),
        defenses=[
            (part.kind, _listed(part.params), part.gradient, "yes" if part.randomized else "no", part.status)
            for part in report.victim.defense
        ],
        seed=report.seed,
        command=command,
        cost=f"This report took {report.charged} charged passes: {report.forward} forward, "
        f"{report.backward} backward, which count twice.",
    )


def _pictures(report: ProbeReport, record: AttackRecord | None, clean: Tensor) -> list[_Picture]:
    size = f"{clean.shape[-1]} x {clean.shape[-1]} pixels"
    decision = f"taken for {report.input.clean.label!r} ({report.input.clean.probability:.1%})"
    alt = f"The untouched picture as the classifier sees it, {size}, {decision}"
    pictures = [_Picture("Clean", decision, alt, _inline(clean))]
    if record is None or record.adversarial_png is None:
        return pictures
    witness = load_pixels(base64.b64decode(record.adversarial_png), clean.shape[-1])
    decision = f"taken for {record.label!r} ({record.probability:.1%})"
    title = "Adversarial" if record.success_8bit else "The strongest attempt"
    alt = f"The picture after the attack {record.kind}, {size}, {decision}"
    change = (witness - clean) * LEVELS
    largest = change.abs().max().item()
    factor = max(1, int(127 / largest)) if largest else 1
    note = (
        f"magnified {factor} times, grey is no change; no value moved by more than {largest:.4g} of 255 "
        f"levels"
    )
    difference = _inline((change * factor + _MIDDLE) / LEVELS)
    return [
        *pictures,
        _Picture(title, decision, alt, record.adversarial_png),
        _Picture("Difference", note, f"The change that the attack made, {note}", difference),
    ]


def _missing(record: AttackRecord | None) -> str | None:
    if record is None or record.adversarial_png is not None:
        return None
    if record.success and not record.success_8bit:
        return (
            "Only the float pixels change the decision: rounded to the 8 bits of a PNG the change is "
            "lost, so there is no picture of it to show."
        )
    return "The report holds no attacked picture."


def _heat(heat: Heat) -> dict[str, Any]:
    rows, columns = heat.grid
    cells = [
        (level, row, column) for row, line in enumerate(heat.levels) for column, level in enumerate(line)
    ]
    strongest, row, column = max(cells)
    note = (
        f"mean change a cell; the strongest is {strongest:.3g} of 255 levels, in row {row + 1}, column "
        f"{column + 1} of {rows} x {columns}"
    )
    return {
        "rows": rows,
        "columns": columns,
        "note": note,
        "alt": f"Heat map over the picture: {note}",
        "cells": [
            {"row": row, "column": column, "strength": round(0.8 * level / (strongest or 1), 3)}
            for level, row, column in cells
        ],
    }


def _curves(report: ProbeReport) -> list[str]:
    traced = [
        (f"{record.kind}, {record.knowledge}{_at(record)}", record, record.trace)
        for record in report.attacks
        if record.trace is not None
    ]
    margins = [Curve(name, list(zip(trace.step, trace.margin, strict=True))) for name, _, trace in traced]
    values = [
        Curve(f"{name}: {record.score}", list(zip(trace.step, trace.value, strict=True)))
        for name, record, trace in traced
        if record.score != "margin"
    ]
    drawn = [
        chart("Margin along the attack", margins, across="step"),
        chart("Score along the attack", values, across="step"),
        *_by_radius(report),
    ]
    return [figure for figure in drawn if figure]


def _by_radius(report: ProbeReport) -> list[str]:
    """A chart for each norm in which several radii were tried: the worst margin for each knowledge."""
    drawn: list[str] = []
    for norm, unit, scale in (("linf", "radius, levels of 255 (Linf)", LEVELS), ("l2", "radius (L2)", 1)):
        worst: dict[str, dict[float, float]] = {}
        for record in report.attacks:
            radius = radius_of(record)
            if norm_of(record) == norm and radius is not None:
                row = worst.setdefault(record.knowledge, {0.0: report.input.clean.margin})
                row[radius * scale] = max(record.margin, row.get(radius * scale, record.margin))
        if len({radius for row in worst.values() for radius in row}) > 2:
            curves = [Curve(knowledge, sorted(row.items())) for knowledge, row in worst.items()]
            drawn.append(chart("Margin by radius", curves, across=unit))
    return drawn


def _at(record: AttackRecord) -> str:
    radius = radius_of(record)
    return "" if radius is None else f" at {radius_text(radius, norm_of(record))}"


def _facts(report: ProbeReport, picture: str) -> list[tuple[str, str | tuple[str, ...]]]:
    victim = report.victim
    return [
        ("Picture", f"{picture}, seen at {report.input.resolution[0]} x {report.input.resolution[1]} pixels"),
        ("Prompt set", victim.prompt_set),
        ("Templates", ", ".join(victim.templates)),
        (
            "Backbone",
            f"{victim.arch} {victim.pretrained} ({victim.fingerprint[:12]}), answers by {victim.encoder}",
        ),
        ("Defense", named([part.kind for part in victim.defense])),
        ("Scoring", victim.scoring),
        ("Digest", victim.digest),
        ("Code", f"robustclip {report.code_version}, {report.dtype} on {report.device}"),
        ("Labels", victim.labels),
    ]


def _listed(params: dict[str, Any]) -> str:
    return (
        ", ".join(
            f"{name} {value if isinstance(value, str) else json.dumps(value)}"
            for name, value in params.items()
        )
        or "none"
    )


def _inline(pixels: Tensor) -> str:
    return base64.b64encode(pixels_to_png(pixels)).decode()
