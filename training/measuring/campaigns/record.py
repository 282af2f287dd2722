"""What the JSON of a table remembers of earlier sittings: a prompt set that is measured whole needs neither
its training nor its cells again.

So a table that was begun on one machine goes on, on another, with this file alone. Prompt sets are not in it:
what lacks a cell is learned again. Nothing here is named by a digest, as in `training.finished`: the user
chooses the file, and its rows are matched by what they say.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robustclip.defenses import parse_defenses
from robustclip.errors import DataRefused
from robustclip.models.clip import Clip
from training.data.labelled import LabelledImages
from training.data.sampling import balanced_subset
from training.measuring.campaigns.ledger import Made
from training.measuring.evaluation.cells import unpacked
from training.measuring.evaluation.question import Question
from training.measuring.evaluation.rows import Row, measured_on
from training.measuring.evaluation.subjects import SUBSET_SEED
from training.measuring.pages.wording import UNUSUAL
from training.threats.base import threat_level

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class TableRecord:
    """Trainings and rows of a table, as its JSON has them; both empty where there is none."""

    path: Path = Path()
    trainings: Sequence[Facts] = ()
    results: Sequence[Facts] = ()

    def made(self, method: str, data: str, seed: int, *, run: str) -> Made | None:
        """What an equal run left, be its prompt set here or not; `run` is the ledger's digest."""
        for facts in self.trainings:
            if (facts["method"], facts["data"], facts["seed"], facts.get("run")) == (method, data, seed, run):
                try:
                    return Made.model_validate(
                        {name: value for name, value in facts.items() if name in Made.model_fields}
                    )
                except ValidationError as error:
                    raise _refused(self.path, str(error)) from error
        return None

    def rows(
        self, question: Question, clip: Clip, data: LabelledImages, *, method: str, prompt_set: str
    ) -> tuple[list[Row], int]:
        """A question's answers about one prompt set, in the order of its conditions, and how many are not
        there; `data`: what its source opens.
        """
        (source,), (seed,) = question.data, question.seeds
        indices = balanced_subset(data, question.limit, SUBSET_SEED)
        about = {
            "method": method,
            "prompt_set": prompt_set,
            "seed": seed,
            "measured_on": measured_on(clip, data, indices),
        }
        names = tuple(data.names[index] for index in indices.tolist())
        found, lacking = list[Row](), 0
        for chain in question.defenses:
            random = any(link.randomized for link in parse_defenses(chain))
            for threat, within in question.conditions():
                level = threat_level(threat)
                asked = {**about, "defense": chain, "threat": threat, "eps": within.text}
                facts = self._result(asked, level.unusual(question, randomized=random), level.named(question))
                if facts is None:
                    lacking += 1
                    continue
                try:
                    right = unpacked(facts["right"], len(names))
                except (KeyError, ValueError) as error:
                    raise _refused(self.path, str(error)) from error
                found.append(Row(dict(facts), method, source.folder.resolve(), names, right))
        return found, lacking

    def _result(self, asked: Facts, unusual: Facts, attack: Facts) -> Facts | None:
        for facts in self.results:
            same = (
                all(facts.get(name) == value for name, value in asked.items())
                and {name: facts[name] for name in UNUSUAL if name in facts} == unusual
            )
            if same and all(facts["attack"][name] == value for name, value in attack.items()):
                return facts
        return None


def read_record(path: Path) -> TableRecord:
    """An empty record if there is no file. DataRefused for a file that holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return TableRecord(path, content["trainings"], content["results"])
    except FileNotFoundError:
        return TableRecord(path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise _refused(path, str(error)) from error


def _refused(path: Path, why: str) -> DataRefused:
    return DataRefused(
        f"no record of a table: {why}",
        field=str(path),
        help="Move this file away: what it held will be computed again.",
    )
