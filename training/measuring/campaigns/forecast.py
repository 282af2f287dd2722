"""What a campaign will take, said before it starts: trainings and cells that are to come, billed, and what
can't be had.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from training.learning.tuning.run import Run
from training.measuring.campaigns.campaign import NO_RECORD, Entry, Round, asking, lacking_defenses, state_of
from training.measuring.campaigns.ledger import Opened, TableRecord
from training.measuring.evaluation.plan import Planned, described, duration, plan
from training.measuring.evaluation.question import AskedSet, open_subjects
from training.measuring.schema.files import Gap


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
    """What a campaign will take, before it starts; `whole`: prompt sets that a record has with all their
    cells, which are not listed otherwise.

    `borrowed`: who takes settings that were chosen for another CLIP, by the sentence that says so.
    """

    learnings: list[Learning]
    cells: list[Planned]
    gaps: list[Gap]
    whole: list[str]
    borrowed: dict[str, list[str]]

    def sentence(self) -> str:
        pending = [learning for learning in self.learnings if not learning.done]
        charged, text, seconds = (
            sum(getattr(learning, name) for learning in pending)
            for name in ("charged", "text_passes", "seconds")
        )
        lines = [
            f"{len(self.learnings)} trainings, {len(self.learnings) - len(pending)} of them done already; at "
            f"most {charged:,} charged passes and {text:,} text passes, about {duration(seconds)}",
            described(self.cells),
            *(f"{', '.join(dict.fromkeys(labels))}: {said}" for said, labels in self.borrowed.items()),
        ]
        if self.whole:
            has = "the table's JSON has all that is asked of them"
            lines.insert(0, f"{len(self.whole)} prompt sets need nothing: {has}")
        if self.gaps:
            named = "; ".join(f"{gap.method} on {gap.data}: {gap.why}" for gap in self.gaps)
            lines.append(f"{len(self.gaps)} can't be had: {named}")
        return "\n".join(lines)


def forecast(rounds: Sequence[Round], opened: Opened, record: TableRecord = NO_RECORD) -> Forecast:
    """Everything that is asked, opened and billed; raises for what can't be opened at all."""
    found = Forecast([], [], [], [], {})
    settled: set[str] = set()
    for turn in rounds:
        fresh: dict[str, AskedSet] = {}
        standing: dict[str, str] = {}
        for entry in turn.entries:
            run, gap, made, remembered = state_of(turn, entry, opened, record)
            if remembered is not None and remembered.whole:
                found.whole.append(entry.label)
                continue
            settings = entry.settings
            clip = settings and opened.clip(settings.backbone, settings.pretrained)
            if settings and clip and (sentence := settings.borrowed(clip)):
                found.borrowed.setdefault(sentence, []).append(entry.label)
            if gap is not None or (made is not None and made.ref is None):
                found.gaps.append(gap or turn.gap(entry.label, made and made.why))
                continue
            standing[entry.label] = (made and made.ref) or entry.asked
            if run is not None:
                found.learnings.append(_learning(turn, entry, run, opened, done=made is not None))
                if made is None:
                    labels = run.pictures.data.labels
                    fresh[entry.asked] = AskedSet(entry.asked, run.starting_prompts(), labels)
        lacking = lacking_defenses(turn)
        found.gaps.extend(lacking.values())
        for question, labels in turn.questions:
            asked = asking(question, [standing[label] for label in labels if label in standing], lacking)
            if asked is not None:
                found.cells.extend(plan(asked, open_subjects(asked, fresh), settled=settled))
    return found


def _learning(turn: Round, entry: Entry, run: Run, opened: Opened, *, done: bool) -> Learning:
    objective, epochs = run.objective, sum(run.objective.phases())
    start = objective.new_parameters(run.clip, run.pictures.data.labels, run.settings.seed)
    learners = 1 + len(objective.companions(run.clip, start))
    passes = epochs * math.ceil(len(run.indices) / objective.batch) * learners
    seconds = 0.0 if done else opened.seconds(run, passes)
    return Learning(entry.label, turn.data, turn.seed, epochs, run.bill(), passes, seconds, done)
