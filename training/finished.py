"""Finished work on disk: a file of one line for each answer, named by a digest of all that it depends on.

So no answer is looked up by a name that could go stale, and a killed command continues after its last whole
answer. Of several processes that want the same answer at once, one computes it. Any file can be removed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from robustclip.digests import json_digest
from robustclip.errors import DataRefused
from robustclip.files import claimed, write_atomically

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def name_of(key: Mapping[str, object]) -> str:
    return json_digest(key)[:16]


def path_of(folder: Path, key: Mapping[str, object]) -> Path:
    return folder / f"{name_of(key)}.json"


def keep(path: Path, line: str) -> None:
    write_atomically(path, f"{line}\n".encode())


def recall(path: Path, model: type[M], what: str, *, again: str = "made") -> M | None:
    """The line at `path`, or None if there is no file. DataRefused if the file holds something else."""
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise unusable(path, f"no {what}.", again=again) from error


def unusable(path: Path, reason: str, *, again: str = "made") -> DataRefused:
    """The refusal of a file; `again`: what will happen to its content once more."""
    return DataRefused(reason, field=str(path), help=f"Remove this file: it will be {again} again.")


def once(
    path: Path,
    recall: Callable[[], T | None],
    make: Callable[[], T | None],
    keep: Callable[[T], None],
    *,
    wait: bool = True,
) -> T | None:
    """What `recall` finds, else what `make` gives, after `keep` has written it to `path`.

    None if `make` gives None, or if another process is at work on `path` and we don't `wait` for it.
    """
    if (answer := recall()) is not None:
        return answer
    with claimed(path, wait=wait) as ours:
        answer = recall()
        if answer is None and ours and (answer := make()) is not None:
            keep(answer)
    return answer
