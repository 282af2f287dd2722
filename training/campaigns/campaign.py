"""Several trainings and the cells that judge them: billed before, done one after the other, and after a kill from where it stopped.

`robustclip select` compares candidates this way, `robustclip suite` fills a table. Finished trainings are known from `ledger.py`, finished cells from
`evaluation/cells.py`, what a table's JSON has whole from `record.py`. What can't be trained, and a defense whose network is not there, is a gap with
its reason, and the others go on. Several processes at one campaign share it: each takes what no other is at.
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
from training.campaigns.ledger import Made, digest_of, make, recall
from training.campaigns.record import Record
from training.data.folders import LabelledImages
from training.data.sources import Source
from training.evaluation.plan import Planned, described, duration, plan, seconds_per_pass
from training.evaluation.prompt_sets import AskedSet, load_prompts, of_seed
from training.evaluation.question import Question
from training.evaluation.rows import Row, answer, open_subjects
from training.processes import Processes
from training.tuning.config import TrainSettings
from training.tuning.run import Run, TrainingPictures, open_run, open_training

NOT_YET = "not learned yet"
NO_RECORD = Record()


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
    """What a training left, now or before; `run`: the ledger's digest."""

    label: str
    data: str
    seed: int
    made: Made
    run: str


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
    """What a campaign will take, before it starts; `known`: how many prompt sets a record has with all their cells, which are not listed."""

    learnings: list[Learning]
    cells: list[Planned]
    gaps: list[Gap]
    known: int

    def sentence(self) -> str:
        pending = [learning for learning in self.learnings if not learning.done]
        charged, text = sum(learning.charged for learning in pending), sum(learning.text_passes for learning in pending)
        learned = (
            f"{len(self.learnings)} trainings, {len(self.learnings) - len(pending)} of them done already; at most {charged:,} charged passes and "
            f"{text:,} text passes, about {duration(sum(learning.seconds for learning in pending))}"
        )
        known = [f"{self.known} prompt sets need nothing: the table's JSON has all that is asked of them"]
        lacking = [f"{len(self.gaps)} can't be had: " + "; ".join(f"{gap.label} on {gap.data}: {gap.why}" for gap in self.gaps)]
        return "\n".join([*(known if self.known else []), learned, described(self.cells), *(lacking if self.gaps else [])])


@dataclass(frozen=True, eq=False)
class Opened:
    """CLIPs and training pictures, each opened once, and how fast they are."""

    processes: Processes
    _clips: dict[tuple[str, str | None], Clip] = field(default_factory=dict[tuple[str, str | None], Clip])
    _pictures: dict[tuple[Path, Path | None], TrainingPictures] = field(default_factory=dict[tuple[Path, Path | None], TrainingPictures])
    _sources: dict[Source, LabelledImages] = field(default_factory=dict[Source, LabelledImages])
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

    def source(self, source: Source) -> LabelledImages:
        if source not in self._sources:
            self._sources[source] = source.open()
        return self._sources[source]

    def seconds(self, run: Run, text_passes: int) -> float:
        """How long a run takes at the present pace: its image passes and its text passes, timed once each for a CLIP, labels and a method."""
        labels = run.pictures.data.labels
        image, text = run.clip.fingerprint, repr((run.clip.fingerprint, labels, run.objective.kind))
        if image not in self._paces:
            self._paces[image] = seconds_per_pass(run.clip)
        if text not in self._paces:
            self._paces[text] = _seconds_per_text_pass(run)
        return run.bill() * self._paces[image] + text_passes * self._paces[text]


def forecast(rounds: Sequence[Round], opened: Opened, record: Record = NO_RECORD) -> Forecast:
    """Everything that is asked, opened and billed; raises for what can't be opened at all."""
    gaps: list[Gap] = []
    learnings: list[Learning] = []
    cells: list[Planned] = []
    whole = 0
    settled: set[str] = set()
    for turn in rounds:
        known: dict[str, AskedSet] = {}
        standing: dict[str, str] = {}
        for entry in turn.entries:
            run, gap = _opened(opened, entry, turn)
            found = _remembered(record, opened, turn, entry, run)
            if found is not None and found.whole:
                whole += 1
                continue
            standing[entry.label] = entry.asked
            if entry.settings is None:
                continue
            made = None if run is None else recall(run)
            if gap is not None or (made is not None and made.ref is None):
                gaps.append(gap or Gap(entry.label, turn.data, turn.seed, (made.why if made else None) or NOT_YET))
                del standing[entry.label]
            elif run is not None:
                passes = _text_passes(run)
                epochs, seconds = sum(run.objective.phases()), 0.0 if made else opened.seconds(run, passes)
                learnings.append(Learning(entry.label, turn.data, turn.seed, epochs, run.bill(), passes, seconds, made is not None))
                if made is None:
                    known[entry.asked] = AskedSet(entry.asked, run.starting_prompts(), run.pictures.data.labels)
                else:
                    standing[entry.label] = made.ref or entry.asked
        lacking = _lacking_defenses(turn)
        gaps.extend(lacking.values())
        for question, labels in turn.questions:
            asked = _asking(question, [standing[label] for label in labels if label in standing], lacking)
            if asked is not None:
                cells.extend(plan(asked, open_subjects(asked, known), settled=settled))
    return Forecast(learnings, cells, gaps, whole)


def perform(
    rounds: Sequence[Round], opened: Opened, *, progress: Progress, only_kept: bool = False, record: Record = NO_RECORD
) -> Iterator[Row | Learned | Gap]:
    """Learn and measure; every row bears the label of its entry. `only_kept` computes nothing: what an earlier run left, and gaps for the rest.

    What another process is at is left to it as long as there is anything else to do, and waited for at the end. A prompt set that the `record` has
    whole is taken from there; with `only_kept` also one of which it has a part, if it is not in the store.
    """
    found = [list(_perform(turn, opened, record, progress=progress, only_kept=only_kept, wait=False)) for turn in rounds]
    for turn, parts in zip(rounds, found, strict=True):
        left = not only_kept and any(isinstance(part, Gap) and part.pending for part in parts)
        yield from _perform(turn, opened, record, progress=progress, only_kept=False, wait=True) if left else parts


def _perform(turn: Round, opened: Opened, record: Record, *, progress: Progress, only_kept: bool, wait: bool) -> Iterator[Row | Learned | Gap]:
    """One round; unless `wait`, what another process is at is missing."""
    standing: dict[str, str] = {}
    remembered: dict[str, _Remembered] = {}
    for entry in turn.entries:
        run, gap = _opened(opened, entry, turn)
        found = _remembered(record, opened, turn, entry, run)
        here = run is None or recall(run) is not None
        if found is not None and (found.whole or (only_kept and not here)):
            remembered[entry.label] = found
            if found.made is not None and run is not None:
                yield Learned(entry.label, turn.data, turn.seed, found.made, digest_of(run))
            continue
        if entry.settings is None:
            standing[entry.label] = entry.asked
            continue
        if run is not None:
            about = _named(progress, f"{turn.data} {entry.label} {turn.seed}")
            made = recall(run) if only_kept else make(run, opened.processes, progress=about, wait=wait)
            if made is not None and made.ref is not None:
                standing[entry.label] = made.ref
                yield Learned(entry.label, turn.data, turn.seed, made, digest_of(run))
                continue
            gap = Gap(entry.label, turn.data, turn.seed, (made.why if made else None) or NOT_YET, pending=made is None)
        if gap is not None:
            yield gap
    lacking = _lacking_defenses(turn)
    yield from lacking.values()
    for number, (question, labels) in enumerate(turn.questions):
        answers = {label: list(remembered[label].rows[number]) for label in labels if label in remembered}
        missing = {label: (remembered[label].lacking[number], len(rows)) for label, rows in answers.items()}
        present = [label for label in labels if label in standing]
        asked = _asking(question, [standing[label] for label in present], lacking)
        if asked is not None:
            named = {standing[label]: label for label in present}
            subjects, answered = open_subjects(asked), 0
            for row in answer(asked, subjects, progress=progress, only_kept=only_kept, wait=wait):
                answered += 1
                label = named[row.asked]
                answers.setdefault(label, []).append(row._replace(asked=label, facts={"method": label, **row.facts}))
            missing[", ".join(present)] = (len(subjects) * len(list(asked.conditions())) - answered, answered)
        for label in labels:
            yield from answers.get(label, ())
        for whose, (lacks, has) in missing.items():
            if lacks:
                yield Gap(whose, turn.data, turn.seed, f"{lacks} of {lacks + has} cells not measured yet", pending=True)


class _Remembered(NamedTuple):
    """What a record has of an entry: what its training left; question by question its rows, and how many lack. Nothing lacks of others' questions."""

    made: Made | None
    rows: list[list[Row]]
    lacking: list[int]

    @property
    def whole(self) -> bool:
        return not any(self.lacking)


def _remembered(record: Record, opened: Opened, turn: Round, entry: Entry, run: Run | None) -> _Remembered | None:
    """None where the record has nothing of it, or of another training, or of what a name meant in another store."""
    made = None if run is None else record.made(entry.label, turn.data, turn.seed, run=digest_of(run))
    if not record.results or (made is None and entry.settings is not None):
        return None
    found = _Remembered(made, [], [])
    for question, labels in turn.questions:
        rows, lacking = list[Row](), 0
        if entry.label in labels:
            (source,), clip = question.data, opened.clip(question.backbones[0], question.pretrained)
            data = opened.source(source)
            name = made.ref if made is not None else load_prompts(of_seed(entry.asked, source, turn.seed), clip, data.labels, question.store).name
            rows, lacking = record.rows(question, clip, data, method=entry.label, prompt_set=name or "")
        found.rows.append(rows)
        found.lacking.append(lacking)
    return found if any(found.rows) else None


def _opened(opened: Opened, entry: Entry, turn: Round) -> tuple[Run | None, Gap | None]:
    """The run of an entry, or the gap that it leaves where it can't be trained; neither where nothing is to be learned."""
    settings = entry.settings
    if settings is None:
        return None, None
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
