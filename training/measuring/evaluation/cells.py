"""Measured cells, one file each: a killed evaluation continues after its last cell, in T3 after its batch.

A new question that contains old ones pays only for what is new.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import BaseModel, JsonValue
from torch import Tensor

from robustclip.measuring import Measured
from robustclip.types import Cost
from training import finished
from training.threats.judging import AtLevel

_FORMAT = 1  # raise it when the same key comes to mean other numbers


class _Line(BaseModel, frozen=True, extra="forbid"):
    key: dict[str, JsonValue]
    attack: dict[str, JsonValue] | None
    fell_to: dict[str, int] | None
    correct: str
    correct_8bit: str
    abstained: str | None = None
    cost: tuple[int, int]
    seconds: float


def cell_path(folder: Path, key: Mapping[str, object]) -> Path:
    """Where the cell of a key is, as this version of the code measures it."""
    return finished.path_of(folder, {**key, "format": _FORMAT, "code": version("robustclip")})


def keep(path: Path, key: Mapping[str, object], cell: AtLevel) -> None:
    """Write a cell, whole or not at all."""
    measured = cell.measured
    line = {
        "key": key,
        "attack": cell.attack,
        "fell_to": cell.fell_to,
        "correct": _bits(measured.correct),
        "correct_8bit": _bits(measured.correct_8bit),
        **({} if measured.abstained is None else {"abstained": _bits(measured.abstained)}),
        "cost": measured.cost,
        "seconds": measured.seconds,
    }
    finished.keep(path, json.dumps(line))


def parts_of(path: Path) -> Path:
    """The folder for finished parts of a cell, as long as the whole is not finished."""
    return path.with_suffix("")


def forget_parts(path: Path) -> None:
    shutil.rmtree(parts_of(path), ignore_errors=True)


def forget(path: Path) -> None:
    """Make sure that the cell is measured again from its beginning."""
    path.unlink(missing_ok=True)
    forget_parts(path)


def recall(path: Path, pictures: int) -> AtLevel | None:
    """The cell, or None if it was never finished. DataRefused for a file that holds something else."""
    line = finished.recall(path, _Line, "cell of an evaluation", again="measured")
    if line is None:
        return None
    columns = (line.correct, line.correct_8bit, line.abstained)
    if any(len(bits) != pictures for bits in columns if bits is not None):
        reason = f"expected {pictures} pictures, found {len(line.correct)}."
        raise finished.unusable(path, reason, again="measured")
    correct, correct_8bit = _tensor(line.correct), _tensor(line.correct_8bit)
    abstained = None if line.abstained is None else _tensor(line.abstained)
    measured = Measured(correct, correct_8bit, Cost(*line.cost), line.seconds, abstained)
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
