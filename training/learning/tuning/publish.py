"""Learned prompts to a published set: everything that is known about how they were made goes into the
manifest.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pydantic import ValidationError

from prompts_store.manifest import ClipIdentity, PromptManifest, PromptSet, Ref, Result
from prompts_store.store import PromptStore
from robustclip.errors import invalid_input
from robustclip.measuring import accuracy
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from training.data.labelled import LabelledImages
from training.learning.objectives import AnyMethod
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
