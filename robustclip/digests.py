"""Digests of what an answer depends on. Each kind of value has exactly one text or one row of bytes."""

import hashlib
import json

import torch
from torch import Tensor

from robustclip.types import Pixels


def canonical_json(values: object) -> str:
    """The one JSON text of these values: sorted keys, no spaces, ASCII. ValueError for NaN and infinity."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def json_digest(values: object) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of the values as float32, shape included."""
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    return hashlib.sha256(repr(tuple(tensor.shape)).encode() + values.tobytes()).hexdigest()


def levels_digest(pixels: Pixels) -> str:
    """sha256 of the pixels as 8-bit values; a report names its picture by it."""
    return hashlib.sha256((pixels * 255).round().to(torch.uint8).cpu().numpy().tobytes()).hexdigest()
