"""Trainings that are done, one file of one line each: whoever makes many of them goes on after the last whole
one.

The file is named by a digest of everything that the published set depends on; delete the folder at any time.
"""

from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from prompts_store.manifest import Ref
from prompts_store.store import PromptStore
from robustclip.digests import json_digest
from robustclip.errors import DataRefused, RobustClipError
from robustclip.files import claimed, write_atomically
from robustclip.types import Progress
from training.learning.tuning.collapse import TrainingFailed
from training.learning.tuning.run import Run, train
from training.measuring.schema.files import Made
from training.processes import Processes

_VALIDATION = ("validate_at", "validate_eps", "validate_limit")


def recall(run: Run) -> Made | None:
    """What an equal run left, if that is still in its store. DataRefused for a file that holds something
    else.
    """
    path = _path(run)
    try:
        made = Made.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataRefused(
            "no record of a training.",
            field=str(path),
            help="Remove this file: the training will be looked up again.",
        ) from error
    if made.ref is not None:
        try:
            PromptStore(run.settings.store, read_only=True).load(Ref.parse(made.ref), run.clip)
        except RobustClipError:
            return None
    return made


def make(run: Run, processes: Processes, *, progress: Progress, wait: bool = True) -> Made | None:
    """Train, unless that was done. A run that collapsed is remembered as such: the same draws would lead
    there again.

    None if another process is at an equal run and we don't `wait` for it.
    """
    made = recall(run)
    if made is not None:
        return made
    with claimed(_path(run), wait=wait) as ours:
        made = recall(run)
        if made is None and ours:
            made = _trained(run, processes, progress)
            write_atomically(_path(run), made.model_dump_json().encode() + b"\n")
    return made


def _trained(run: Run, processes: Processes, progress: Progress) -> Made:
    try:
        trained = train(run, processes, progress=progress)
    except TrainingFailed as failure:
        return Made(ref=None, why=failure.message)
    assert trained is not None  # alone, this process is the main one
    account = trained.account()
    charged = account.forward + 2 * account.backward
    seconds = round(account.preparing_seconds + account.tuning_seconds, 1)
    return Made(
        ref=str(trained.ref),
        epochs=len(trained.fitted.history),
        charged=charged,
        text_passes=account.text_passes,
        seconds=seconds,
    )


def digest_of(run: Run) -> str:
    """Everything that the published set depends on, wherever it is published."""
    return json_digest(_facts(run))


def _path(run: Run) -> Path:
    facts = {**_facts(run), "store": str(run.settings.store.resolve())}
    return run.settings.runs / "trained" / f"{json_digest(facts)[:16]}.json"


def _facts(run: Run) -> dict[str, object]:
    settings = run.settings
    facts: dict[str, object] = {
        "run": run.digest,
        "name": settings.name,
        "note": settings.note,
        "code": version("robustclip"),
    }
    facts |= {name: getattr(settings, name) for name in _VALIDATION}
    return facts | {
        "shots": settings.shots,
        "selection": None if settings.selection is None else settings.selection.carried().digest,
    }
