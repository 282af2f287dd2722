"""What the JSON of a table has of earlier runs: a prompt set with all its cells there needs neither its
training nor its cells again.

A table that was begun on one machine is continued on another with this file alone. It holds no prompt sets:
one that lacks a cell is learned again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustclip.defenses import parse_defenses
from robustclip.errors import DataRefused, InvalidInput
from robustclip.models.clip import Clip
from training.data.labelled import LabelledImages
from training.data.sampling import balanced_subset
from training.measuring.evaluation.cells import unpacked
from training.measuring.evaluation.question import Question
from training.measuring.evaluation.rows import Row, measured_on
from training.measuring.evaluation.subjects import SUBSET_SEED
from training.measuring.schema.files import Made, TableFile, Training, read_results
from training.measuring.schema.rows import Result
from training.threats.base import threat_level


@dataclass(frozen=True)
class TableRecord:
    """Trainings and rows of a table, as its JSON has them; both are empty where there is no file."""

    path: Path = Path()
    trainings: Sequence[Training] = ()
    results: Sequence[Result] = ()

    def made(self, method: str, data: str, seed: int, *, run: str) -> Made | None:
        """What an equal run left, even without its prompt set; `run`: the ledger's digest."""
        for training in self.trainings:
            if (training.method, training.data, training.seed, training.run) == (method, data, seed, run):
                return Made.model_validate(training.part(*Made.model_fields))
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
