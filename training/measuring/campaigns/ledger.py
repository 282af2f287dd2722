"""What the trainings of a campaign share: CLIPs and pictures, opened once, and what earlier runs left.

Finished trainings are one file each: a killed campaign continues after its last whole training. A table that
was begun on one machine is continued on another with its JSON alone: a prompt set with all its cells there
needs neither its training nor its cells again. The JSON holds no prompt sets: one that lacks a cell is
learned again. It is not named by a digest, as in `training.finished`: the user chooses the file, and its rows
are matched by what they say.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from prompts_store.manifest import Ref
from prompts_store.store import PromptStore
from robustclip.defenses import parse_defenses
from robustclip.digests import json_digest
from robustclip.errors import DataRefused, InvalidInput, RobustClipError
from robustclip.models import Clip, Prompts, load_clip, text_weights
from robustclip.types import Progress
from training import finished
from training.data.labelled import LabelledImages
from training.data.sampling import balanced_subset
from training.data.sources import Source
from training.learning.tuning.collapse import TrainingFailed
from training.learning.tuning.run import Run, open_training, train
from training.measuring.evaluation.cells import unpacked
from training.measuring.evaluation.plan import seconds_per_pass
from training.measuring.evaluation.question import SUBSET_SEED, Question
from training.measuring.evaluation.rows import Row, measured_on
from training.measuring.schema.evaluation import Result
from training.measuring.schema.files import Made, TableFile, Training, read_results
from training.processes import Processes
from training.threats.base import threat_level

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
    account = trained.account
    return Made(
        ref=str(trained.ref),
        epochs=len(trained.fitted.history),
        charged=account.cost.charged,
        text_passes=account.text_passes,
        seconds=round(account.preparing_seconds + account.tuning_seconds, 1),
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


class Opened:
    """CLIPs, training pictures and sources, each opened once, and how fast they are on the device."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.clip = cache(partial(load_clip, device=processes.device))
        self.pictures = cache(open_training)
        self.source = cache(Source.open)
        self._paces: dict[str, float] = {}

    def seconds(self, run: Run, text_passes: int) -> float:
        """How long a run takes at the present pace: its image passes and its text passes, timed once each for
        a CLIP, labels and a method.
        """
        labels = run.pictures.data.labels
        image, text = run.clip.fingerprint, repr((run.clip.fingerprint, labels, run.objective.kind))
        if image not in self._paces:
            self._paces[image] = seconds_per_pass(run.clip)
        if text not in self._paces:
            self._paces[text] = _seconds_per_text_pass(run)
        return run.bill() * self._paces[image] + text_passes * self._paces[text]


def _seconds_per_text_pass(run: Run) -> float:
    """One pass over all labels, forward and backward to the vectors; 0 where no text is learned."""
    start = run.starting_prompts()
    if start.text is None:
        return 0.0
    taken: list[float] = []
    for _ in range(2):
        began = time.monotonic()
        vectors = start.text.clone().requires_grad_()
        prompts = Prompts(vectors, None, start.templates, start.class_specific)
        text_weights(run.clip, prompts, run.pictures.data.labels).sum().backward()
        taken.append(time.monotonic() - began)
    return min(taken)


@dataclass(frozen=True)
class TableRecord:
    """Trainings and rows of a table, as its JSON has them; both are empty where there is no file."""

    path: Path = Path()
    trainings: Sequence[Training] = ()
    results: Sequence[Result] = ()

    def training(self, method: str, data: str, seed: int, run: str) -> Training | None:
        """What an equal run left, even without its prompt set; `run`: the ledger's digest."""
        wanted = (method, data, seed, run)
        for training in self.trainings:
            if (training.method, training.data, training.seed, training.run) == wanted:
                return training
        return None

    def rows(
        self, question: Question, clip: Clip, data: LabelledImages, *, method: str, prompt_set: str
    ) -> tuple[list[Row], int]:
        """A question's answers about one prompt set, in the order of its conditions, and how many are
        missing. `data`: what its source opens.
        """
        (source,), (seed,) = question.data, question.seeds
        indices = balanced_subset(data, question.limit, SUBSET_SEED)
        pictures = measured_on(clip, data, indices)
        names = tuple(data.names[index] for index in indices.tolist())
        found, lacking = list[Row](), 0
        for chain in question.defenses:
            random = any(link.randomized for link in parse_defenses(chain))
            for threat, within in question.conditions():
                level = threat_level(threat)
                asked = (method, prompt_set, seed, pictures, chain, threat, within.text)
                unusual = level.unusual(question, randomized=random)
                result = self._result(asked, unusual, level.named(question))
                if result is None:
                    lacking += 1
                    continue
                try:
                    right = unpacked(result.right or "", len(names))
                except ValueError as error:
                    raise _refused(self.path, str(error)) from error
                found.append(Row(result, method, source.folder.resolve(), names, right))
        return found, lacking

    def _result(
        self, asked: tuple[object, ...], unusual: Mapping[str, object], attack: Mapping[str, object]
    ) -> Result | None:
        for row in self.results:
            about = (row.method, row.prompt_set, row.seed, row.measured_on, row.defense, row.threat, row.eps)
            if about == asked and row.unusual == unusual and attack.items() <= (row.attack or {}).items():
                return row
        return None


def read_record(path: Path) -> TableRecord:
    """An empty record if there is no file. DataRefused for a file that holds something else."""
    if not path.exists():
        return TableRecord(path)
    try:
        content = read_results(path)
    except InvalidInput as error:
        raise _refused(path, str(error)) from error
    if not isinstance(content, TableFile) or "trainings" not in content.model_fields_set:
        raise _refused(path, "another command wrote it.")
    return TableRecord(path, content.trainings, content.results)


def _refused(path: Path, why: str) -> DataRefused:
    return DataRefused(
        f"no record of a table: {why}",
        field=str(path),
        help="Move this file away: what it held will be computed again.",
    )
