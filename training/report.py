"""The report of a training run: one HTML page that needs nothing else. Curves are inline SVG; no script, no font, no picture from elsewhere."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from prompts_store.manifest import PromptManifest, Ref, Result
from training.checkpoint import Epoch

WIDTH, HEIGHT, MARGIN = 460, 200, 44
COLOURS = ("#1565c0", "#c62828", "#2e7d32", "#6a1b9a", "#ef6c00", "#00838f", "#5d4037", "#455a64")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top }
th { font-weight: 600 } tr + tr td { border-top: 1px solid #e4e4e4 } td { overflow-wrap: anywhere }
figure { display: inline-block; margin: 0 1rem 1rem 0 }
figcaption { font-weight: 600 } .warning { background: #fff3e0; border-left: 4px solid #ef6c00; padding: .5rem 1rem }
"""


class Curve(NamedTuple):
    """A named line: a value an epoch, None where there is none."""

    name: str
    values: Sequence[float | None]


class Account(NamedTuple):
    """What a run took, and what happened to it. `companions`: measured beside, not published."""

    pictures: int
    forward: int
    backward: int
    text_passes: int
    preparing_seconds: float
    tuning_seconds: float
    restarts: int
    companions: Mapping[str, Sequence[Result]]


def training_page(ref: Ref, manifest: PromptManifest, history: Sequence[Epoch], account: Account) -> str:
    """The whole page. Everything that came from outside (labels, notes, names) is escaped."""
    facts = {
        "prompt set": str(ref),
        "learned on": "any CLIP" if manifest.clip is None else f"{manifest.clip.arch} {manifest.clip.pretrained} ({manifest.clip.fingerprint[:8]})",
        "data": f"{manifest.dataset}, {account.pictures} pictures of {len(manifest.labels)} labels"
        + ("" if manifest.shots is None else f", {manifest.shots} shots"),
        "seed": manifest.seed,
        "image passes": f"{account.forward:,} forward, {account.backward:,} backward ({account.forward + 2 * account.backward:,} charged)",
        "text passes": f"{account.text_passes:,}",
        "seconds": f"{account.preparing_seconds:.0f} preparing, {account.tuning_seconds:.0f} tuning since it was last resumed",
        "code": manifest.code_version,
        "note": manifest.note,
    }
    warning = (
        f'<p class="warning">The run collapsed and began again {account.restarts} time(s), each time with half the consistency term.</p>'
        if account.restarts
        else ""
    )
    results = {str(ref): manifest.results, **{f"{name} (not published)": found for name, found in account.companions.items()}}
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
            f"<title>{escape(str(ref))}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(manifest.name)}: {escape(str(manifest.objective['kind']))}</h1>",
            warning,
            _table(facts),
            "<h2>Held-out pictures</h2>",
            _results(results),
            "<h2>Training</h2>",
            *_figures(history),
            "<h2>Objective</h2>",
            _table(manifest.objective),
            "<h2>Training attack</h2>",
            _table(manifest.attack or {"attack": "none"}),
            "</body></html>\n",
        ]
    )


def chart(title: str, curves: Sequence[Curve], *, percent: bool = False) -> str:
    """A figure of curves over epochs with axes and a legend; nothing for curves without a single finite value."""
    finite = [value for curve in curves for value in curve.values if value is not None and math.isfinite(value)]
    if not finite:
        return ""
    low, high = (0.0, 1.0) if percent else (min(0.0, *finite), max(finite))
    high = high if high > low else low + 1
    count = max(len(curve.values) for curve in curves)

    def place(epoch: int, value: float) -> str:
        across = MARGIN + (WIDTH - 2 * MARGIN) * (epoch / max(count - 1, 1))
        return f"{across:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low):.1f}"

    parts: list[str] = []
    for number, curve in enumerate(curves):
        points = [place(epoch, value) for epoch, value in enumerate(curve.values) if value is not None and math.isfinite(value)]
        colour = COLOURS[number % len(COLOURS)]
        if points:
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{" ".join(points)}"/>')
        parts.append(f'<text x="{WIDTH - MARGIN + 6}" y="{MARGIN + 14 * number}" fill="{colour}">{escape(curve.name)}</text>')
    bottom = HEIGHT - MARGIN
    labels = [(low, bottom + 4), (high, MARGIN + 4)]
    axis = "".join(f'<text x="{MARGIN - 6}" y="{y}" text-anchor="end">{_number(value, percent)}</text>' for value, y in labels)
    epochs = f'<text x="{MARGIN}" y="{bottom + 18}">1</text><text x="{WIDTH - MARGIN}" y="{bottom + 18}" text-anchor="end">{count} epochs</text>'
    frame = f'<path d="M{MARGIN} {MARGIN}V{bottom}H{WIDTH - MARGIN}" fill="none" stroke="#999"/>'
    room = 150  # for the legend
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg role="img" aria-label="{escape(title)}" width="{WIDTH + room}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH + room} {HEIGHT}" font-size="12" fill="#444">{frame}{axis}{epochs}{"".join(parts)}</svg></figure>'
    )


def _figures(history: Sequence[Epoch]) -> list[str]:
    terms = dict.fromkeys(name for epoch in history for name in epoch.losses)
    notes = dict.fromkeys(name for epoch in history for name in epoch.notes)
    losses = [Curve(name, [epoch.losses.get(name) for epoch in history]) for name in terms]
    if len(losses) > 1:
        losses.append(Curve("sum", [epoch.loss for epoch in history]))
    accuracies = [Curve("untouched", [epoch.accuracy for epoch in history]), Curve("attacked", [epoch.robust for epoch in history])]
    return [
        chart("Loss terms", losses),
        chart("Accuracy on training batches", [curve for curve in accuracies if any(value is not None for value in curve.values)], percent=True),
        chart("What the method notes", [Curve(name, [epoch.notes.get(name) for epoch in history]) for name in notes]),
        chart("Learning rate", [Curve("rate", [epoch.learning_rate for epoch in history])]),
    ]


def _results(results: Mapping[str, Sequence[Result]]) -> str:
    rows = [
        f"<tr><td>{escape(name)}</td><td>{escape(found.threat)}</td><td>{escape(found.eps)}</td>"
        f"<td>{found.accuracy:.1%} [{found.low:.1%}, {found.high:.1%}]</td><td>{found.n}</td></tr>"
        for name, measured in results.items()
        for found in measured
    ]
    if not rows:
        return "<p>None were held out.</p>"
    head = "<tr><th>prompts</th><th>threat level</th><th>radius</th><th>accuracy</th><th>pictures</th></tr>"
    return f"<table>{head}{''.join(rows)}</table><p>Choose by these numbers, report others: a test file is read once, at the end.</p>"


def _table(values: Mapping[str, object]) -> str:
    return "<table>" + "".join(f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>" for name, value in values.items()) + "</table>"


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _number(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:.3g}"
