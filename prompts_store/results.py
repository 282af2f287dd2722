"""What an evaluation's JSON says about one version of a prompt set, as results of its manifest.

Training writes that JSON; nothing of training is imported here.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from prompts_store.manifest import Ref, Result
from robustclip.digests import canonical_json
from robustclip.errors import InvalidInput, invalid_input

_FIELD = "--results"
_NO_DEFENSE = "none"
_SUBJECT = {"data", "split", "threat", "eps", "attack", "seed", "n"}  # equal in repeated measurements
_NAMED = 5  # prompt sets in a message
_HELP = "robustclip evaluate --json and robustclip suite write one."


class _Row(Result, extra="ignore"):
    """A result with what a manifest's result lacks: prompt set, defense, classes, precision of the search."""

    prompt_set: str
    defense: str
    classes: str | None = None
    search: str | None = None

    def as_result(self) -> Result:
        """The manifest's result; the precision of the search becomes a part of the attack."""
        attack = self.attack
        if attack is not None and self.search is not None:
            attack = {**attack, "search": self.search}
        return Result.model_validate({**self.model_dump(include={*Result.model_fields}), "attack": attack})


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    results: tuple[_Row, ...]


def read_results(path: Path, ref: Ref) -> tuple[Result, ...]:
    """The results of exactly that version, on all classes and without a defense, in the file's order.

    Raises InvalidInput for `--results`.
    """
    values: object = None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = _Answer.model_validate(values).results
        for row in rows:
            canonical_json(row.attack)
    except OSError as error:
        raise InvalidInput(
            f"{path} can't be read: {error.strerror}.", field=_FIELD, help="Name a file that is there."
        ) from error
    except ValidationError as error:
        raise InvalidInput(
            f"{path} is no evaluation: {invalid_input(error, values)}", field=_FIELD, help=_HELP
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is no evaluation: {error}.", field=_FIELD, help=_HELP) from error
    results = tuple(
        row.as_result()
        for row in rows
        if (row.prompt_set, row.defense, row.classes) == (str(ref), _NO_DEFENSE, None)
    )
    if not results:  # name the other prompt sets, other versions of this one first
        known = sorted(
            dict.fromkeys(row.prompt_set for row in rows),
            key=lambda known: known.partition("@")[0] != ref.name,
        )
        more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
        raise InvalidInput(
            f"{path} has nothing about {ref}, measured on all classes without a defense.",
            field=_FIELD,
            help=f"It is about {', '.join(known[:_NAMED]) or 'nothing'}{more}.",
        )
    return results


def joined(results: Iterable[Result], more: Iterable[Result]) -> tuple[Result, ...]:
    """All results in order; of repeated measurements only the first."""
    first: dict[str, Result] = {}
    for result in (*results, *more):
        first.setdefault(canonical_json(result.model_dump(mode="json", include=_SUBJECT)), result)
    return tuple(first.values())
