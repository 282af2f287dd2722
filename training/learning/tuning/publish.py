"""Learned prompts to a published set: everything that is known about how they were made goes into the
manifest, and a report of the run, one HTML page with charts that needs nothing else, beside it.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

from pydantic import ValidationError

from prompts_store.manifest import ClipIdentity, PromptManifest, PromptSet, Ref, Result
from prompts_store.store import PromptStore
from robustclip.errors import invalid_input
from robustclip.measuring import accuracy
from robustclip.models import Clip, Prompts
from robustclip.reports.charts import Curve, chart
from robustclip.reports.html import render
from robustclip.types import Cost
from training.data.labelled import LabelledImages
from training.learning.objectives import AnyMethod
from training.learning.tuning.checkpoint import Epoch
from training.learning.tuning.selection import CARRIED, Selection
from training.threats.base import ThreatSet
from training.threats.judging import AtLevel


def publish(
    store: PromptStore,
    clip: Clip,
    objective: AnyMethod,
    prompts: Prompts,
    *,
    name: str,
    data: LabelledImages,
    shots: int,
    seed: int,
    results: Sequence[Result] = (),
    selection: Selection | None = None,
    note: str = "",
    activate: bool = False,
) -> Ref:
    """Write the set into the store. The same training again is the same version: nothing in it depends on
    when or where it ran but `created_at`, which no version counts.
    """
    values = {
        "name": name,
        "objective": objective.model_dump(mode="json")
        | ({} if selection is None else {CARRIED: selection.carried().model_dump(mode="json")}),
        "clip": ClipIdentity.of(clip),
        "templates": prompts.templates,
        "class_specific": prompts.class_specific,
        "labels": data.labels,
        "dataset": data.folder.resolve().name,
        "shots": shots or None,
        "attack": objective.attack_facts(),
        "results": tuple(results),
        "seed": seed,
        "code_version": version("robustclip"),
        "created_at": datetime.now(UTC).replace(microsecond=0),
        "note": note,
    }
    try:
        manifest = PromptManifest.model_validate(values)
    except ValidationError as error:
        raise invalid_input(error, values, field="--name") from error
    return store.publish(PromptSet(manifest, prompts), activate=activate)


def as_result(
    found: AtLevel, threat: str, within: ThreatSet[Any], *, data: LabelledImages, seed: int
) -> Result:
    """One measurement in the manifest's words."""
    share = accuracy(found.measured.correct)
    return Result(
        data=data.folder.resolve().name,
        split=data.split,
        threat=threat,
        eps=within.text,
        n=len(found.measured.correct),
        accuracy=share.value,
        low=share.low,
        high=share.high,
        attack=found.attack,
        seed=seed,
    )


class Account(NamedTuple):
    """What a run took, and what happened to it. `companions`: measured beside, not published."""

    pictures: int
    cost: Cost
    text_passes: int
    preparing_seconds: float
    tuning_seconds: float
    restarts: int
    companions: Mapping[str, Sequence[Result]]


def training_page(ref: Ref, manifest: PromptManifest, history: Sequence[Epoch], account: Account) -> str:
    """The whole page."""
    facts = {
        "prompt set": str(ref),
        "learned on": "any CLIP"
        if manifest.clip is None
        else f"{manifest.clip.arch} {manifest.clip.pretrained} ({manifest.clip.fingerprint[:8]})",
        "data": f"{manifest.dataset}, {account.pictures} pictures of {len(manifest.labels)} labels"
        + ("" if manifest.shots is None else f", {manifest.shots} shots"),
        "seed": manifest.seed,
        "image passes": f"{account.cost.forward:,} forward, {account.cost.backward:,} backward "
        f"({account.cost.charged:,} charged)",
        "text passes": f"{account.text_passes:,}",
        "seconds": f"{account.preparing_seconds:.0f} preparing, {account.tuning_seconds:.0f} tuning since "
        f"it was last resumed",
        "code": manifest.code_version,
        "note": manifest.note,
    }
    results = {
        str(ref): manifest.results,
        **{f"{name} (not published)": measured for name, measured in account.companions.items()},
    }
    return render(
        "training.html",
        package="training.learning.tuning",
        ref=str(ref),
        name=manifest.name,
        kind=str(manifest.objective["kind"]),
        restarts=account.restarts,
        run=_texts(facts),
        results=[_row(name, result) for name, measured in results.items() for result in measured],
        curves=_figures(history),
        objective=_texts(manifest.objective),
        attack=_texts(manifest.attack or {"attack": "none"}),
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


def _row(name: str, result: Result) -> tuple[str, ...]:
    share = f"{result.accuracy:.1%} [{result.low:.1%}, {result.high:.1%}]"
    return name, result.threat, result.eps, share, str(result.n)


def _texts(values: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in values.items()]


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
