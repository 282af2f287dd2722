"""What was measured already, one file of one line a cell: a killed evaluation goes on after its last whole
cell, in T3 after its last batch. A new question that contains old ones pays only for what is new.

The file is named by a digest of everything that the numbers depend on; delete the folder at any time.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor

from robustclip.digests import json_digest
from robustclip.errors import DataRefused
from robustclip.files import write_atomically
from robustclip.measuring import Measured
from robustclip.types import Cost
from training.threats.judging import AtLevel

_FORMAT = 1  # raise it when the same key comes to mean other numbers


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    key: dict[str, JsonValue]
    attack: dict[str, JsonValue] | None
    fell_to: dict[str, int] | None
    correct: str
    correct_8bit: str
    abstained: str | None = None
    cost: tuple[int, int]
    seconds: float


def cell_path(folder: Path, key: Mapping[str, object]) -> Path:
    """Where the cell of that key is kept: under the present version of the code."""
    return folder / f"{json_digest({**key, 'format': _FORMAT, 'code': version('robustclip')})[:16]}.json"


def keep(path: Path, key: Mapping[str, object], found: AtLevel) -> None:
    """Write a cell, whole or not at all."""
    measured = found.measured
    line = {
        "key": key,
        "attack": found.attack,
        "fell_to": found.fell_to,
        "correct": _bits(measured.correct),
        "correct_8bit": _bits(measured.correct_8bit),
        **({} if measured.abstained is None else {"abstained": _bits(measured.abstained)}),
        "cost": measured.cost,
        "seconds": measured.seconds,
    }
    write_atomically(path, (json.dumps(line) + "\n").encode())


def parts_of(path: Path) -> Path:
    """The folder of what is done of a cell that takes long, until the whole of it is."""
    return path.with_suffix("")


def forget_parts(path: Path) -> None:
    """They are of no use once the cell is kept."""
    shutil.rmtree(parts_of(path), ignore_errors=True)


def forget(path: Path) -> None:
    """The cell is measured again from its beginning."""
    path.unlink(missing_ok=True)
    forget_parts(path)


def recall(path: Path, pictures: int) -> AtLevel | None:
    """The cell, or None if it was never finished. DataRefused for a file that holds something else."""
    try:
        line = _Line.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise DataRefused(
            "no cell of an evaluation.", field=str(path), help="Remove this file: it will be measured again."
        ) from error
    found = (line.correct, line.correct_8bit, *(() if line.abstained is None else (line.abstained,)))
    if any(len(bits) != pictures for bits in found):
        raise DataRefused(
            f"expected {pictures} pictures, found {len(line.correct)}.",
            field=str(path),
            help="Remove this file: it will be measured again.",
        )
    silent = None if line.abstained is None else _tensor(line.abstained)
    measured = Measured(
        _tensor(line.correct), _tensor(line.correct_8bit), Cost(*line.cost), line.seconds, silent
    )
    return AtLevel(measured, line.attack, line.fell_to)


def packed(correct: Tensor) -> str:
    """[n] bool as hexadecimal digits, four pictures each, the first picture the highest bit; the last digit
    is filled up with zeros.
    """
    bits = _bits(correct)
    return "".join(f"{int(bits[start : start + 4].ljust(4, '0'), 2):x}" for start in range(0, len(bits), 4))


def unpacked(digits: str, pictures: int) -> Tensor:
    """[pictures] bool of `packed`. ValueError for digits of another number of pictures."""
    bits = "".join(f"{int(digit, 16):04b}" for digit in digits)
    if len(digits) != -(-pictures // 4) or "1" in bits[pictures:]:
        raise ValueError(f"expected the outcomes of {pictures} pictures, found {digits!r}")
    return _tensor(bits[:pictures])


def _bits(correct: Tensor) -> str:
    return "".join("1" if right else "0" for right in correct.tolist())


def _tensor(bits: str) -> Tensor:
    return torch.tensor([bit == "1" for bit in bits], dtype=torch.bool)
