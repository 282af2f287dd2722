"""Several trainings and the cells that judge them: done one after the other, and after a kill from where it
stopped.

`robustclip select` compares candidates this way, `robustclip suite` fills a table. Finished trainings are
known from `ledger.py`, and so is what a table's JSON has whole; finished cells from `evaluation/cells.py`.
What can't be trained, and a defense whose network is not there, is a gap with its reason, and the others go
on. Several processes at one campaign share it: each takes what no other is at.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from robustclip.defenses import network_digests, parse_defenses
from robustclip.errors import FeatureNotInstalled, PurifierRefused, RobustClipError
from robustclip.types import Progress
from training.learning.tuning.config import TrainSettings
from training.learning.tuning.run import Run, open_run
from training.measuring.campaigns.ledger import Opened, TableRecord, digest_of, make, recall
from training.measuring.evaluation.question import Question, load_prompts, of_seed, open_subjects
from training.measuring.evaluation.rows import Row, answer
from training.measuring.schema.evaluation import Result
from training.measuring.schema.files import Gap, Made, Training

NOT_YET = "not learned yet"
NO_RECORD = TableRecord()


@dataclass(frozen=True)
class Entry:
    """A prompt set to judge. `label`: how tables call it, whatever is learned; `settings`: how it is learned,
    None if `asked` is there.
    """

    label: str
    asked: str
    settings: TrainSettings | None = None


@dataclass(frozen=True)
class Round:
    """What is learned from one data set with one seed, and the questions about it, each about some of the
    entries, by label.
    """

    data: str
    seed: int
    entries: tuple[Entry, ...]
    questions: tuple[tuple[Question, tuple[str, ...]], ...]

    def gap(self, label: str, why: str | None, **pending: bool) -> Gap:
        """What is not there; `pending` is said where nothing hinders it."""
        return Gap(method=label, data=self.data, seed=self.seed, why=why or NOT_YET, **pending)


class Remembered(NamedTuple):
    """What a record has of an entry: what its training left; question by question its rows, and how many
    lack. Nothing lacks of others' questions.
    """

    training: Training | None
    rows: list[list[Row]]
    lacking: list[int]

    @property
    def whole(self) -> bool:
        return not any(self.lacking)


class State(NamedTuple):
    """Where an entry stands: its `run`, if it is learned, or the `gap` where that can't be, and what an
    earlier run left of it: in the ledger, and in the table's record.
    """

    run: Run | None
    gap: Gap | None
    made: Made | None
    remembered: Remembered | None


def perform(
    rounds: Sequence[Round],
    opened: Opened,
    *,
    progress: Progress,
    only_kept: bool = False,
    record: TableRecord = NO_RECORD,
) -> Iterator[Row | Training | Gap]:
    """Learn and measure; every row bears the label of its entry. `only_kept` computes nothing: what an
    earlier run left, and gaps for the rest.

    What another process is at is left to it as long as there is anything else to do, and waited for at the
    end. A prompt set that the `record` has whole is taken from there; with `only_kept` also one of which it
    has a part, if it is not in the store.
    """
    found = [
        list(_perform(turn, opened, record, progress=progress, only_kept=only_kept, wait=False))
        for turn in rounds
    ]
    for turn, parts in zip(rounds, found, strict=True):
        left = not only_kept and any(isinstance(part, Gap) and part.pending for part in parts)
        yield from (
            _perform(turn, opened, record, progress=progress, only_kept=False, wait=True) if left else parts
        )


def _perform(
    turn: Round, opened: Opened, record: TableRecord, *, progress: Progress, only_kept: bool, wait: bool
) -> Iterator[Row | Training | Gap]:
    """One round; unless `wait`, what another process is at is missing."""
    standing: dict[str, str] = {}
    remembered: dict[str, Remembered] = {}
    for entry in turn.entries:
        run, gap, made, found = state_of(turn, entry, opened, record)
        if found is not None and (found.whole or (only_kept and run is not None and made is None)):
            remembered[entry.label] = found
            yield from [] if found.training is None else [found.training]
        elif gap is not None:
            yield gap
        elif run is None:
            standing[entry.label] = entry.asked
        else:
            if not only_kept:
                about = _named(progress, f"{turn.data} {entry.label} {turn.seed}")
                made = make(run, opened.processes, progress=about, wait=wait)
            if made is None:
                yield turn.gap(entry.label, NOT_YET, pending=True)
            elif made.ref is None:
                yield turn.gap(entry.label, made.why)
            else:
                standing[entry.label] = made.ref
                about = {"method": entry.label, "data": turn.data, "seed": turn.seed, "run": digest_of(run)}
                yield Training.model_validate(about | made.model_dump(exclude={"why"}))
    lacking = lacking_defenses(turn)
    yield from lacking.values()
    for number, (question, labels) in enumerate(turn.questions):
        answers = {label: list(remembered[label].rows[number]) for label in labels if label in remembered}
        missing = {label: (remembered[label].lacking[number], len(rows)) for label, rows in answers.items()}
        present = [label for label in labels if label in standing]
        named = {standing[label]: label for label in present}
        asked = asking(question, named, lacking)
        if asked is not None:
            subjects = open_subjects(asked)
            rows = list(answer(asked, subjects, progress=progress, only_kept=only_kept, wait=wait))
            for row in rows:
                label = named[row.asked]
                result = Result.model_validate({"method": label, **row.result.as_json()})
                answers.setdefault(label, []).append(row._replace(asked=label, result=result))
            whole = len(subjects) * len(list(asked.conditions()))
            missing[", ".join(present)] = (
                whole - len(rows),
                len(rows),
            )
        for label in labels:
            yield from answers.get(label, ())
        for whose, (lacks, has) in missing.items():
            if lacks:
                yield turn.gap(whose, f"{lacks} of {lacks + has} cells not measured yet", pending=True)


def state_of(turn: Round, entry: Entry, opened: Opened, record: TableRecord) -> State:
    """Neither a run nor a gap where nothing is to be learned."""
    run, gap = _run_of(turn, entry, opened)
    training = None if run is None else record.training(entry.label, turn.data, turn.seed, digest_of(run))
    remembered = _remembered(turn, entry, opened, record, training)
    return State(run, gap, None if run is None else recall(run), remembered)


def _run_of(turn: Round, entry: Entry, opened: Opened) -> tuple[Run | None, Gap | None]:
    settings = entry.settings
    if settings is None:
        return None, None
    clip = opened.clip(settings.backbone, settings.pretrained)
    pictures = opened.pictures(settings.data, settings.classes)
    try:
        return open_run(settings, clip, pictures), None
    except RobustClipError as error:
        return None, turn.gap(entry.label, str(error))


def _remembered(
    turn: Round, entry: Entry, opened: Opened, record: TableRecord, training: Training | None
) -> Remembered | None:
    """None where the record has nothing of it, or of another training, or of what a name meant in another
    store.
    """
    if not record.results or (training is None and entry.settings is not None):
        return None
    found = Remembered(training, [], [])
    for question, labels in turn.questions:
        rows, lacking = list[Row](), 0
        if entry.label in labels:
            (source,), clip = question.data, opened.clip(question.backbones[0], question.pretrained)
            data = opened.source(source)
            if training is not None:
                name = training.ref or ""
            else:
                asked = of_seed(entry.asked, source, turn.seed)
                name = load_prompts(asked, clip, data.labels, question.store).name
            rows, lacking = record.rows(question, clip, data, method=entry.label, prompt_set=name)
        found.rows.append(rows)
        found.lacking.append(lacking)
    return found if any(found.rows) else None


def lacking_defenses(turn: Round) -> dict[str, Gap]:
    """Chains whose purifying networks can't be used, by the chain."""
    lacking: dict[str, Gap] = {}
    for chain in dict.fromkeys(chain for question, _ in turn.questions for chain in question.defenses):
        try:
            network_digests(parse_defenses(chain))
        except (PurifierRefused, FeatureNotInstalled) as error:
            lacking[chain] = turn.gap(f"behind {chain}", str(error))
    return lacking


def asking(question: Question, prompt_sets: Iterable[str], lacking: Collection[str]) -> Question | None:
    """The question about these prompt sets behind the defenses that are there; None if nothing is left."""
    defenses = tuple(chain for chain in question.defenses if chain not in lacking)
    asked = {"prompt_sets": tuple(dict.fromkeys(prompt_sets)), "defenses": defenses}
    return question.model_copy(update=asked) if all(asked.values()) else None


def _named(progress: Progress, about: str) -> Progress:
    return lambda done, total, what: progress(done, total, f"{about} {what}")
