"""What a campaign will take, said before it starts: trainings and cells that are to come, billed, and what
can't be had.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from training.learning.tuning.run import Run
from training.measuring.campaigns.campaign import (
    NO_RECORD,
    NOT_YET,
    Round,
    TableGap,
    asking,
    from_record,
    lacking_defenses,
    run_of,
)
from training.measuring.campaigns.ledger import Opened, TableRecord, recall
from training.measuring.evaluation.plan import Planned, described, duration, plan
from training.measuring.evaluation.question import AskedSet, open_subjects


class Learning(NamedTuple):
    """A training to come or done: charged image passes and text passes at most, and the seconds that takes at
    the present pace.
    """

    label: str
    data: str
    seed: int
    epochs: int
    charged: int
    text_passes: int
    seconds: float
    done: bool


class Forecast(NamedTuple):
    """What a campaign will take, before it starts; `known`: how many prompt sets a record has with all their
    cells, which are not listed.

    `borrowed`: who takes settings that were chosen for another CLIP, by the sentence that says so.
    """

    learnings: list[Learning]
    cells: list[Planned]
    gaps: list[TableGap]
    known: int
    borrowed: dict[str, list[str]]

    def sentence(self) -> str:
        pending = [learning for learning in self.learnings if not learning.done]
        charged, text = (
            sum(learning.charged for learning in pending),
            sum(learning.text_passes for learning in pending),
        )
        learned = (
            f"{len(self.learnings)} trainings, {len(self.learnings) - len(pending)} of them done already; "
            f"at most {charged:,} charged passes and "
            f"{text:,} text passes, about {duration(sum(learning.seconds for learning in pending))}"
        )
        known = [f"{self.known} prompt sets need nothing: the table's JSON has all that is asked of them"]
        lacking = [
            f"{len(self.gaps)} can't be had: "
            + "; ".join(f"{gap.label} on {gap.data}: {gap.why}" for gap in self.gaps)
        ]
        borrowed = [f"{', '.join(labels)}: {sentence}" for sentence, labels in self.borrowed.items()]
        return "\n".join(
            [
                *(known if self.known else []),
                learned,
                described(self.cells),
                *borrowed,
                *(lacking if self.gaps else []),
            ]
        )


def forecast(rounds: Sequence[Round], opened: Opened, record: TableRecord = NO_RECORD) -> Forecast:
    """Everything that is asked, opened and billed; raises for what can't be opened at all."""
    gaps: list[TableGap] = []
    learnings: list[Learning] = []
    cells: list[Planned] = []
    whole = 0
    settled: set[str] = set()
    borrowed: dict[str, list[str]] = {}
    for turn in rounds:
        known: dict[str, AskedSet] = {}
        standing: dict[str, str] = {}
        for entry in turn.entries:
            run, gap = run_of(opened, entry, turn)
            found = from_record(record, opened, turn, entry, run)
            if found is not None and found.whole:
                whole += 1
                continue
            standing[entry.label] = entry.asked
            if entry.settings is None:
                continue
            if sentence := entry.settings.borrowed(
                opened.clip(entry.settings.backbone, entry.settings.pretrained)
            ):
                labels = borrowed.setdefault(sentence, [])
                labels += [entry.label] if entry.label not in labels else []
            made = None if run is None else recall(run)
            if gap is not None or (made is not None and made.ref is None):
                gaps.append(
                    gap
                    or TableGap(entry.label, turn.data, turn.seed, (made.why if made else None) or NOT_YET)
                )
                del standing[entry.label]
            elif run is not None:
                passes = _text_passes(run)
                epochs, seconds = sum(run.objective.phases()), 0.0 if made else opened.seconds(run, passes)
                learnings.append(
                    Learning(
                        entry.label,
                        turn.data,
                        turn.seed,
                        epochs,
                        run.bill(),
                        passes,
                        seconds,
                        made is not None,
                    )
                )
                if made is None:
                    known[entry.asked] = AskedSet(
                        entry.asked, run.starting_prompts(), run.pictures.data.labels
                    )
                else:
                    standing[entry.label] = made.ref or entry.asked
        lacking = lacking_defenses(turn)
        gaps.extend(lacking.values())
        for question, labels in turn.questions:
            asked = asking(question, [standing[label] for label in labels if label in standing], lacking)
            if asked is not None:
                cells.extend(plan(asked, open_subjects(asked, known), settled=settled))
    return Forecast(learnings, cells, gaps, whole, borrowed)


def _text_passes(run: Run) -> int:
    steps = sum(run.objective.phases()) * math.ceil(len(run.indices) / run.objective.batch)
    learners = 1 + len(
        run.objective.companions(
            run.clip, run.objective.new_parameters(run.clip, run.pictures.data.labels, run.settings.seed)
        )
    )
    return steps * learners
