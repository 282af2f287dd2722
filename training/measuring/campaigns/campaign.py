"""Several trainings and the cells that judge them: done one after the other, and after a kill from where it
stopped.

`robustclip select` compares candidates this way, `robustclip suite` fills a table. Finished trainings are
known from `ledger.py`, and so is what a table's JSON has whole; finished cells from `evaluation/cells.py`.
What can't be trained, and a defense whose network is not there, is a gap with its reason, and the others go
on. Several processes at one campaign share it: each takes what no other is at.
"""

from collections.abc import Collection, Iterator, Sequence
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
from training.measuring.schema.files import Made

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


class TableGap(NamedTuple):
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


def perform(
    rounds: Sequence[Round],
    opened: Opened,
    *,
    progress: Progress,
    only_kept: bool = False,
    record: TableRecord = NO_RECORD,
) -> Iterator[Row | Learned | TableGap]:
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
        left = not only_kept and any(isinstance(part, TableGap) and part.pending for part in parts)
        yield from (
            _perform(turn, opened, record, progress=progress, only_kept=False, wait=True) if left else parts
        )


def _perform(
    turn: Round, opened: Opened, record: TableRecord, *, progress: Progress, only_kept: bool, wait: bool
) -> Iterator[Row | Learned | TableGap]:
    """One round; unless `wait`, what another process is at is missing."""
    standing: dict[str, str] = {}
    remembered: dict[str, _Remembered] = {}
    for entry in turn.entries:
        run, gap = run_of(opened, entry, turn)
        found = from_record(record, opened, turn, entry, run)
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
            gap = TableGap(
                entry.label,
                turn.data,
                turn.seed,
                (made.why if made else None) or NOT_YET,
                pending=made is None,
            )
        if gap is not None:
            yield gap
    lacking = lacking_defenses(turn)
    yield from lacking.values()
    for number, (question, labels) in enumerate(turn.questions):
        answers = {label: list(remembered[label].rows[number]) for label in labels if label in remembered}
        missing = {label: (remembered[label].lacking[number], len(rows)) for label, rows in answers.items()}
        present = [label for label in labels if label in standing]
        asked = asking(question, [standing[label] for label in present], lacking)
        if asked is not None:
            named = {standing[label]: label for label in present}
            subjects, answered = open_subjects(asked), 0
            for row in answer(asked, subjects, progress=progress, only_kept=only_kept, wait=wait):
                answered += 1
                label = named[row.asked]
                result = Result.model_validate({"method": label, **row.result.as_json()})
                answers.setdefault(label, []).append(row._replace(asked=label, result=result))
            missing[", ".join(present)] = (len(subjects) * len(list(asked.conditions())) - answered, answered)
        for label in labels:
            yield from answers.get(label, ())
        for whose, (lacks, has) in missing.items():
            if lacks:
                yield TableGap(
                    whose,
                    turn.data,
                    turn.seed,
                    f"{lacks} of {lacks + has} cells not measured yet",
                    pending=True,
                )


class _Remembered(NamedTuple):
    """What a record has of an entry: what its training left; question by question its rows, and how many
    lack. Nothing lacks of others' questions.
    """

    made: Made | None
    rows: list[list[Row]]
    lacking: list[int]

    @property
    def whole(self) -> bool:
        return not any(self.lacking)


def from_record(
    record: TableRecord, opened: Opened, turn: Round, entry: Entry, run: Run | None
) -> _Remembered | None:
    """None where the record has nothing of it, or of another training, or of what a name meant in another
    store.
    """
    made = None if run is None else record.made(entry.label, turn.data, turn.seed, run=digest_of(run))
    if not record.results or (made is None and entry.settings is not None):
        return None
    found = _Remembered(made, [], [])
    for question, labels in turn.questions:
        rows, lacking = list[Row](), 0
        if entry.label in labels:
            (source,), clip = question.data, opened.clip(question.backbones[0], question.pretrained)
            data = opened.source(source)
            name = (
                made.ref
                if made is not None
                else load_prompts(
                    of_seed(entry.asked, source, turn.seed), clip, data.labels, question.store
                ).name
            )
            rows, lacking = record.rows(question, clip, data, method=entry.label, prompt_set=name or "")
        found.rows.append(rows)
        found.lacking.append(lacking)
    return found if any(found.rows) else None


def run_of(opened: Opened, entry: Entry, turn: Round) -> tuple[Run | None, TableGap | None]:
    """The run of an entry, or the gap that it leaves where it can't be trained; neither where nothing is to
    be learned.
    """
    settings = entry.settings
    if settings is None:
        return None, None
    clip, pictures = (
        opened.clip(settings.backbone, settings.pretrained),
        opened.pictures(settings.data, settings.classes),
    )
    try:
        return open_run(settings, clip, pictures), None
    except RobustClipError as error:
        return None, TableGap(entry.label, turn.data, turn.seed, str(error))


def lacking_defenses(turn: Round) -> dict[str, TableGap]:
    """Chains whose purifying networks can't be used, by the chain."""
    lacking: dict[str, TableGap] = {}
    for chain in dict.fromkeys(chain for question, _ in turn.questions for chain in question.defenses):
        try:
            network_digests(parse_defenses(chain))
        except (PurifierRefused, FeatureNotInstalled) as error:
            lacking[chain] = TableGap(f"behind {chain}", turn.data, turn.seed, str(error))
    return lacking


def asking(question: Question, prompt_sets: Sequence[str], lacking: Collection[str]) -> Question | None:
    defenses = tuple(chain for chain in question.defenses if chain not in lacking)
    asked = {"prompt_sets": tuple(dict.fromkeys(prompt_sets)), "defenses": defenses}
    return question.model_copy(update=asked) if prompt_sets and defenses else None


def _named(progress: Progress, about: str) -> Progress:
    return lambda done, total, what: progress(done, total, f"{about} {what}")
