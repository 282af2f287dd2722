"""Finished trainings, one file each: a killed campaign continues after its last whole training."""

from importlib.metadata import version
from pathlib import Path

from prompts_store.manifest import Ref
from prompts_store.store import PromptStore
from robustclip.digests import json_digest
from robustclip.errors import RobustClipError
from robustclip.types import Progress
from training import finished
from training.learning.tuning.collapse import TrainingFailed
from training.learning.tuning.run import Run, train
from training.measuring.schema.files import Made
from training.processes import Processes

_VALIDATION = ("validate_at", "validate_eps", "validate_limit")


def recall(run: Run) -> Made | None:
    """What an equal run left, if its store still has it. DataRefused for a file that holds something else."""
    made = finished.recall(_path(run), Made, "record of a training", again="looked up")
    if made is not None and made.ref is not None:
        try:
            PromptStore(run.settings.store, read_only=True).load(Ref.parse(made.ref), run.clip)
        except RobustClipError:
            return None
    return made


def make(run: Run, processes: Processes, *, progress: Progress, wait: bool = True) -> Made | None:
    """Train, unless that was done. A collapse is remembered too: the same draws would lead to it again.

    None if another process is at an equal run and we don't `wait` for it.
    """
    path = _path(run)
    return finished.once(
        path,
        recall=lambda: recall(run),
        make=lambda: _trained(run, processes, progress),
        keep=lambda made: finished.keep(path, made.model_dump_json()),
        wait=wait,
    )


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
    """Digest of everything that the published set depends on, in any store."""
    return json_digest(_facts(run))


def _path(run: Run) -> Path:
    facts = {**_facts(run), "store": str(run.settings.store.resolve())}
    return finished.path_of(run.settings.runs / "trained", facts)


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
