"""Several trainings and the cells that judge them: billed before, done one after the other, and after a kill from where it stopped.

`robustclip select` compares candidates this way, `robustclip suite` fills a table. Finished trainings are known from `ledger.py`, finished cells from
`evaluation/cells.py`; what can't be trained, and a defense whose network is not there, is a gap with its reason, and the others go on. Several
processes at one campaign share it: each takes what no other is at.
"""

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from robustclip.classifier import text_weights
from robustclip.clip import Clip, load_clip
from robustclip.defenses import network_digests, parse_defenses
from robustclip.errors import FeatureNotInstalled, PurifierRefused, RobustClipError
from robustclip.prompts import Prompts
from robustclip.types import Progress
from training.campaigns.ledger import Made, make, recall
from training.evaluation.plan import Planned, described, duration, plan, seconds_per_pass
from training.evaluation.prompt_sets import AskedSet
from training.evaluation.question import Question
from training.evaluation.rows import Row, answer, open_subjects
from training.processes import Processes
from training.tuning.config import TrainSettings
from training.tuning.run import Run, TrainingPictures, open_run, open_training

NOT_YET = "not learned yet"


@dataclass(frozen=True)
class Entry:
    """A prompt set to judge. `label`: how tables call it, whatever is learned; `settings`: how it is learned, None if `asked` is there."""

    label: str
    asked: str
    settings: TrainSettings | None = None


@dataclass(frozen=True)
class Round:
    """What is learned from one data set with one seed, and the questions about it, each about some of the entries, by label."""

    data: str
    seed: int
    entries: tuple[Entry, ...]
    questions: tuple[tuple[Question, tuple[str, ...]], ...]


class Gap(NamedTuple):
    """What is not there, and why. `pending`: nothing hinders it, it was only not done yet."""

    label: str
    data: str
    seed: int
    why: str
    pending: bool = False


class Learned(NamedTuple):
    """What a training left, now or before."""

    label: str
    data: str
    seed: int
    made: Made


class Learning(NamedTuple):
    """A training to come or done: charged image passes and text passes at most, and the seconds that takes at the present pace."""

    label: str
    data: str
    seed: int
    epochs: int
    charged: int
    text_passes: int
    seconds: float
    done: bool


class Forecast(NamedTuple):
    """What a campaign will take, before it starts."""

    learnings: list[Learning]
    cells: list[Planned]
    gaps: list[Gap]

    def sentence(self) -> str:
        pending = [learning for learning in self.learnings if not learning.done]
        charged, text = sum(learning.charged for learning in pending), sum(learning.text_passes for learning in pending)
        learned = (
            f"{len(self.learnings)} trainings, {len(self.learnings) - len(pending)} of them done already; at most {charged:,} charged passes and "
            f"{text:,} text passes, about {duration(sum(learning.seconds for learning in pending))}"
        )
        lacking = [f"{len(self.gaps)} can't be had: " + "; ".join(f"{gap.label} on {gap.data}: {gap.why}" for gap in self.gaps)]
        return "\n".join([learned, described(self.cells), *(lacking if self.gaps else [])])


@dataclass(frozen=True, eq=False)
class Opened:
    """CLIPs and training pictures, each opened once, and how fast they are."""

    processes: Processes
    _clips: dict[tuple[str, str | None], Clip] = field(default_factory=dict[tuple[str, str | None], Clip])
    _pictures: dict[tuple[Path, Path | None], TrainingPictures] = field(default_factory=dict[tuple[Path, Path | None], TrainingPictures])
    _paces: dict[str, float] = field(default_factory=dict[str, float])

    def clip(self, backbone: str, pretrained: str | None) -> Clip:
        key = (backbone, pretrained)
        if key not in self._clips:
            self._clips[key] = load_clip(*key, device=self.processes.device)
        return self._clips[key]

    def pictures(self, folder: Path, classes: Path | None) -> TrainingPictures:
        key = (folder, classes)
        if key not in self._pictures:
            self._pictures[key] = open_training(*key)
        return self._pictures[key]

    def seconds(self, run: Run, text_passes: int) -> float:
        """How long a run takes at the present pace: its image passes and its text passes, timed once each for a CLIP, labels and a method."""
        labels = run.pictures.data.labels
        image, text = run.clip.fingerprint, repr((run.clip.fingerprint, labels, run.objective.kind))
        if image not in self._paces:
            self._paces[image] = seconds_per_pass(run.clip)
        if text not in self._paces:
            self._paces[text] = _seconds_per_text_pass(run)
        return run.bill() * self._paces[image] + text_passes * self._paces[text]


def forecast(rounds: Sequence[Round], opened: Opened) -> Forecast:
    """Everything that is asked, opened and billed; raises for what can't be opened at all."""
    found = Forecast([], [], [])
    settled: set[str] = set()
    for turn in rounds:
        known: dict[str, AskedSet] = {}
        standing: dict[str, str] = {}
        for entry in turn.entries:
            standing[entry.label] = entry.asked
            if entry.settings is None:
                continue
            run, gap = _opened(opened, entry, turn)
            made = None if run is None else recall(run)
            if gap is not None or (made is not None and made.ref is None):
                found.gaps.append(gap or Gap(entry.label, turn.data, turn.seed, (made.why if made else None) or NOT_YET))
                del standing[entry.label]
            elif run is not None:
                passes = _text_passes(run)
                epochs, seconds = sum(run.objective.phases()), 0.0 if made else opened.seconds(run, passes)
                found.learnings.append(Learning(entry.label, turn.data, turn.seed, epochs, run.bill(), passes, seconds, made is not None))
                if made is None:
                    known[entry.asked] = AskedSet(entry.asked, run.starting_prompts(), run.pictures.data.labels)
                else:
                    standing[entry.label] = made.ref or entry.asked
        lacking = _lacking_defenses(turn)
        found.gaps.extend(lacking.values())
        for question, labels in turn.questions:
            asked = _asking(question, [standing[label] for label in labels if label in standing], lacking)
            if asked is not None:
                found.cells.extend(plan(asked, open_subjects(asked, known), settled=settled))
    return found


def perform(rounds: Sequence[Round], opened: Opened, *, progress: Progress, only_kept: bool = False) -> Iterator[Row | Learned | Gap]:
    """Learn and measure; every row bears the label of its entry. `only_kept` computes nothing: what an earlier run left, and gaps for the rest.

    What another process is at is left to it as long as there is anything else to do, and waited for at the end.
    """
    found = [list(_perform(turn, opened, progress=progress, only_kept=only_kept, wait=False)) for turn in rounds]
    for turn, parts in zip(rounds, found, strict=True):
        left = not only_kept and any(isinstance(part, Gap) and part.pending for part in parts)
        yield from _perform(turn, opened, progress=progress, only_kept=False, wait=True) if left else parts


def _perform(turn: Round, opened: Opened, *, progress: Progress, only_kept: bool, wait: bool) -> Iterator[Row | Learned | Gap]:
    """One round; unless `wait`, what another process is at is missing."""
    standing: dict[str, str] = {}
    for entry in turn.entries:
        if entry.settings is None:
            standing[entry.label] = entry.asked
            continue
        run, gap = _opened(opened, entry, turn)
        if run is not None:
            about = _named(progress, f"{turn.data} {entry.label} {turn.seed}")
            made = recall(run) if only_kept else make(run, opened.processes, progress=about, wait=wait)
            if made is not None and made.ref is not None:
                standing[entry.label] = made.ref
                yield Learned(entry.label, turn.data, turn.seed, made)
                continue
            gap = Gap(entry.label, turn.data, turn.seed, (made.why if made else None) or NOT_YET, pending=made is None)
        if gap is not None:
            yield gap
    lacking = _lacking_defenses(turn)
    yield from lacking.values()
    for question, labels in turn.questions:
        present = [label for label in labels if label in standing]
        asked = _asking(question, [standing[label] for label in present], lacking)
        if asked is None:
            continue
        named = {standing[label]: label for label in present}
        subjects, answered = open_subjects(asked), 0
        for row in answer(asked, subjects, progress=progress, only_kept=only_kept, wait=wait):
            answered += 1
            label = named[row.asked]
            yield row._replace(asked=label, facts={"method": label, **row.facts})
        expected = len(subjects) * len(list(asked.conditions()))
        if answered < expected:
            why = f"{expected - answered} of {expected} cells not measured yet"
            yield Gap(", ".join(present), turn.data, turn.seed, why, pending=True)


def _opened(opened: Opened, entry: Entry, turn: Round) -> tuple[Run | None, Gap | None]:
    """The run of an entry, or the gap that it leaves where it can't be trained."""
    settings = entry.settings
    assert settings is not None
    clip, pictures = opened.clip(settings.backbone, settings.pretrained), opened.pictures(settings.data, settings.classes)
    try:
        return open_run(settings, clip, pictures), None
    except RobustClipError as error:
        return None, Gap(entry.label, turn.data, turn.seed, str(error))


def _lacking_defenses(turn: Round) -> dict[str, Gap]:
    """Chains whose purifying networks can't be used, by the chain."""
    lacking: dict[str, Gap] = {}
    for chain in dict.fromkeys(chain for question, _ in turn.questions for chain in question.defenses):
        try:
            network_digests(parse_defenses(chain))
        except (PurifierRefused, FeatureNotInstalled) as error:
            lacking[chain] = Gap(f"behind {chain}", turn.data, turn.seed, str(error))
    return lacking


def _asking(question: Question, prompt_sets: Sequence[str], lacking: Collection[str]) -> Question | None:
    defenses = tuple(chain for chain in question.defenses if chain not in lacking)
    asked = {"prompt_sets": tuple(dict.fromkeys(prompt_sets)), "defenses": defenses}
    return question.model_copy(update=asked) if prompt_sets and defenses else None


def _text_passes(run: Run) -> int:
    steps = sum(run.objective.phases()) * math.ceil(len(run.indices) / run.objective.batch)
    learners = 1 + len(run.objective.companions(run.clip, run.objective.new_parameters(run.clip, run.pictures.data.labels, run.settings.seed)))
    return steps * learners


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


def _named(progress: Progress, about: str) -> Progress:
    return lambda done, total, what: progress(done, total, f"{about} {what}")
