"""Finished work on disk, named by a digest of all that it depends on: a file of one line for each answer, and
tensors that are dear to make, in parts.

So nothing is looked up by a name that could go stale, and a killed command continues after its last whole
answer or part. Of several processes that want the same answer at once, one computes it; of those that want
the same tensors, each makes parts that no other is at, instead of waiting for one. Any file can be removed.
"""

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from robustclip.digests import json_digest
from robustclip.errors import DataRefused
from robustclip.files import claimed, write_atomically
from robustclip.types import Cost, Progress
from training.processes import ALONE, Processes

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


class Rows(NamedTuple):
    """`rows` [n, ...], what they cost to make, and `counts` of events. Makers leave `seconds` out."""

    rows: Tensor
    cost: Cost
    seconds: float = 0.0
    counts: Mapping[str, int] = MappingProxyType({})


def cached_rows(
    folder: Path,
    key: Mapping[str, object],
    indices: Tensor,
    make: Callable[[Tensor], Rows],
    *,
    chunk: int,
    progress: Progress,
    what: str,
    processes: Processes = ALONE,
) -> Rows:
    """`make` of `indices`, `chunk` at a time; each part is stored under `folder` when it is done.

    `key` holds everything else that the rows depend on. Parts are always cut at the same places, so that a
    resumed run equals a whole one bit by bit. The processes share the missing parts.
    """
    description = {
        **key,
        "chunk": chunk,
        "indices": hashlib.sha256(repr(indices.tolist()).encode()).hexdigest(),
    }
    place = folder / name_of(description)
    if processes.main:
        write_atomically(place / "key.json", json.dumps(description, indent=1, sort_keys=True).encode())
    places = [
        (place / f"part-{number:05d}.safetensors", chosen)
        for number, chosen in enumerate(indices.split(chunk))
    ]
    missing = [(path, chosen) for path, chosen in places if not path.exists()]
    processes.wait()  # all have seen what is missing before one makes the first
    share = missing[processes.index :: processes.count]
    for wait, (path, chosen) in itertools.product((False, True), share):
        with claimed(path, wait=wait) as ours:
            if not ours or path.exists():
                continue
            began = time.monotonic()
            made = make(chosen)
            facts = {**made.cost._asdict(), "seconds": time.monotonic() - began, "counts": dict(made.counts)}
            write_atomically(path, save({"rows": made.rows.contiguous()}, {"facts": json.dumps(facts)}))
        progress(sum(len(chosen) for path, chosen in places if path.exists()), len(indices), what)
    processes.wait()
    parts = [_read(path, len(chosen)) for path, chosen in places]
    cost = Cost(sum(part.cost.forward for part in parts), sum(part.cost.backward for part in parts))
    counts = sum((Counter(part.counts) for part in parts), Counter[str]())
    return Rows(torch.cat([part.rows for part in parts]), cost, sum(part.seconds for part in parts), counts)


def _read(path: Path, count: int) -> Rows:
    try:
        with safe_open(path, framework="pt") as file:
            rows, facts = file.get_tensor("rows"), json.loads(file.metadata()["facts"])
    except SafetensorError as error:
        raise unusable(path, f"damaged: {error}") from error
    if len(rows) != count:
        raise unusable(path, f"expected {count} rows, found {len(rows)}.")
    cost = Cost(int(facts["forward"]), int(facts["backward"]))
    return Rows(rows, cost, float(facts["seconds"]), facts.get("counts", {}))
