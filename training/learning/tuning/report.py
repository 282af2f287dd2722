"""The report of a training run: one HTML page that needs nothing else. Curves are inline SVG; no script, no
font, no picture from elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from prompts_store.manifest import PromptManifest, Ref, Result
from robustclip.reports import charts
from robustclip.reports.charts import Curve, chart
from training.learning.tuning.checkpoint import Epoch

PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark; color: #222; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } td, th { padding: .2rem .9rem .2rem 0; \
text-align: left; vertical-align: top }
th { font-weight: 600 } tr + tr td { border-top: 1px solid #8884 } td { overflow-wrap: anywhere }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 \
1.5rem }
.warning { border-left: 4px solid #ef6c00; padding: .5rem 1rem }
@media (prefers-color-scheme: dark) { :root { color: #e6e6e6; background: #16181c } }
"""


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
        "learned on": "any CLIP"
        if manifest.clip is None
        else f"{manifest.clip.arch} {manifest.clip.pretrained} ({manifest.clip.fingerprint[:8]})",
        "data": f"{manifest.dataset}, {account.pictures} pictures of {len(manifest.labels)} labels"
        + ("" if manifest.shots is None else f", {manifest.shots} shots"),
        "seed": manifest.seed,
        "image passes": f"{account.forward:,} forward, {account.backward:,} backward "
        f"({account.forward + 2 * account.backward:,} charged)",
        "text passes": f"{account.text_passes:,}",
        "seconds": f"{account.preparing_seconds:.0f} preparing, {account.tuning_seconds:.0f} tuning since "
        f"it was last resumed",
        "code": manifest.code_version,
        "note": manifest.note,
    }
    warning = (
        f'<p class="warning">The run collapsed and began again {account.restarts} time(s), each time with '
        f"half the consistency term.</p>"
        if account.restarts
        else ""
    )
    results = {
        str(ref): manifest.results,
        **{f"{name} (not published)": found for name, found in account.companions.items()},
    }
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            'content="width=device-width">',
            f"<title>{escape(str(ref))}</title><style>{PAGE_STYLE}{charts.STYLE}</style></head><body>",
            f"<h1>{escape(manifest.name)}: {escape(str(manifest.objective['kind']))}</h1>",
            warning,
            _table(facts),
            "<h2>Held-out pictures</h2>",
            _results(results),
            "<h2>Training</h2>",
            '<div class="charts">',
            *_figures(history),
            "</div>",
            "<h2>Objective</h2>",
            _table(manifest.objective),
            "<h2>Training attack</h2>",
            _table(manifest.attack or {"attack": "none"}),
            "</body></html>\n",
        ]
    )


def _figures(history: Sequence[Epoch]) -> list[str]:
    terms = dict.fromkeys(name for epoch in history for name in epoch.losses)
    notes = dict.fromkeys(name for epoch in history for name in epoch.notes)
    losses = [_curve(name, [epoch.losses.get(name) for epoch in history]) for name in terms]
    if len(losses) > 1:
        losses.append(_curve("sum", [epoch.loss for epoch in history]))
    accuracies = [
        _curve("untouched", [epoch.accuracy for epoch in history]),
        _curve("attacked", [epoch.robust for epoch in history]),
    ]
    return [
        chart("Loss terms", losses, across="epoch"),
        chart("Accuracy on training batches", accuracies, across="epoch", percent=True),
        chart(
            "What the method notes",
            [_curve(name, [epoch.notes.get(name) for epoch in history]) for name in notes],
            across="epoch",
        ),
        chart("Learning rate", [_curve("rate", [epoch.learning_rate for epoch in history])], across="epoch"),
    ]


def _curve(name: str, values: Sequence[float | None]) -> Curve:
    """A value an epoch, None where there is none."""
    return Curve(name, list(enumerate(values, start=1)))


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
    return (
        f"<table>{head}{''.join(rows)}</table><p>Choose by these numbers, report others: a test file is "
        f"read once, at the end.</p>"
    )


def _table(values: Mapping[str, object]) -> str:
    return (
        "<table>"
        + "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>"
            for name, value in values.items()
        )
        + "</table>"
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
