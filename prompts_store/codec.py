"""Prompt sets to bytes and back. Reading trusts nothing: it decides every refusal of FORMAT.md.

No tensor reaches a tower before.
"""

import json
import struct
from typing import Any, cast

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from prompts_store.manifest import FORMAT_VERSION, PromptManifest, PromptSet
from robustclip.errors import InvalidInput, PromptSetRefused
from robustclip.models import Clip, Prompts, check_prompts

MAX_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 4 * 2**20  # 100,000 labels fit
_DIMENSIONS = {"text_context": (3, 4), "visual_context": (3,)}


def encode(prompt_set: PromptSet) -> bytes:
    """One safetensors file. Raises PromptSetRefused for a set that `decode` would refuse."""
    tensors = dict(prompt_set.tensors())
    for name, tensor in tensors.items():
        _check_finite(name, tensor)
    data = save(tensors, {"manifest": prompt_set.manifest.canonical()})
    if len(data) > MAX_BYTES:
        raise too_large(len(data))
    decode(data, clip=None)
    return data


def decode(data: bytes, *, clip: Clip | None) -> PromptSet:
    """The prompt set in a file's bytes, on the CPU; `reason` of a PromptSetRefused is a code of FORMAT.md.

    With a CLIP, its fingerprint and its towers' shapes must fit, too.
    """
    if len(data) > MAX_BYTES:
        raise too_large(len(data))
    manifest = decode_manifest(data)
    if clip is not None and manifest.clip is not None and manifest.clip.fingerprint != clip.fingerprint:
        raise foreign(manifest, clip.fingerprint, clip.arch)
    tensors = _tensors(data)
    try:
        prompts = Prompts(
            tensors.get("text_context"),
            tensors.get("visual_context"),
            manifest.templates,
            manifest.class_specific,
        )
        prompt_set = PromptSet(manifest, prompts)
        if clip is not None:
            check_prompts(clip, prompts)
    except InvalidInput as error:
        reason = "wrong-shape" if error.field in _DIMENSIONS else "manifest-invalid"
        raise PromptSetRefused(error.message, reason=reason, field=error.field, help=error.help) from error
    return prompt_set


def decode_manifest(data: bytes) -> PromptManifest:
    """The manifest alone, enough to list a set.

    PromptSetRefused for `not-safetensors`, `format-version`, `bad-name`, `manifest-invalid`.
    """
    metadata = _header(data).get("__metadata__")
    if not isinstance(metadata, dict) or list(cast(dict[str, Any], metadata)) != ["manifest"]:
        raise PromptSetRefused(
            "expected exactly one metadata key, `manifest`.",
            reason="manifest-invalid",
            help="Publish with this package.",
        )
    text = cast(dict[str, str], metadata)["manifest"]
    try:
        version = cast(dict[str, Any], json.loads(text))["format_version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PromptSetRefused(
            "the manifest is no JSON object with a format_version.", reason="manifest-invalid"
        ) from error
    if version != FORMAT_VERSION:
        raise PromptSetRefused(
            f"expected format version {FORMAT_VERSION}, found {version!r:.40}.",
            reason="format-version",
            help="Use a robustclip that knows it.",
        )
    try:
        manifest = PromptManifest.model_validate_json(text)
        manifest.canonical()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "/".join(str(part) for part in first["loc"])
        reason = "bad-name" if field == "name" else "manifest-invalid"
        raise PromptSetRefused(f"{first['msg']}.", reason=reason, field=f"manifest/{field}") from error
    except (ValueError, RecursionError) as error:
        raise PromptSetRefused(
            f"the manifest has no canonical form: {error}.", reason="manifest-invalid"
        ) from error
    return manifest


def foreign(manifest: PromptManifest, fingerprint: str, arch: str | None = None) -> PromptSetRefused:
    """The refusal of a set that was learned on another CLIP."""
    clip = manifest.clip
    name = "any CLIP" if clip is None else f"{clip.arch} {clip.pretrained} ({clip.fingerprint[:8]})"
    return PromptSetRefused(
        f"expected a set for {arch or 'a CLIP'} ({fingerprint[:8]}), found one for {name}.",
        reason="foreign-fingerprint",
        field="prompt_set",
        help="Train it on this CLIP.",
    )


def too_large(size: int) -> PromptSetRefused:
    """The refusal of more bytes than a prompt set may have."""
    return PromptSetRefused(f"expected at most {MAX_BYTES} bytes, found {size}.", reason="too-large")


def _header(data: bytes) -> dict[str, Any]:
    """The JSON header; its size is checked before it is parsed."""
    if len(data) < 8:
        raise _not_safetensors(f"{len(data)} bytes are too few")
    (size,) = struct.unpack("<Q", data[:8])
    if size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise _not_safetensors(f"a header of {size} bytes is announced, {len(data) - 8} bytes follow")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise _not_safetensors("the header is no JSON") from error
    if not isinstance(header, dict):
        raise _not_safetensors("the header is no JSON object")
    return cast(dict[str, Any], header)


def _tensors(data: bytes) -> dict[str, Tensor]:
    """Finite float32 tensors under known names."""
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise _not_safetensors(str(error)) from error
    tensors: dict[str, Tensor] = {}
    for name, entry in entries:
        if name not in _DIMENSIONS:
            raise PromptSetRefused(
                f"expected {' or '.join(_DIMENSIONS)}, found {name[:80]!r}.", reason="unknown-tensor"
            )
        if entry["dtype"] != "F32":
            raise PromptSetRefused(
                f"expected float32, found {entry['dtype']}.", reason="wrong-dtype", field=name
            )
        shape = cast(list[int], entry["shape"])
        if len(shape) not in _DIMENSIONS[name] or 0 in shape:
            raise PromptSetRefused(
                f"expected {' or '.join(map(str, _DIMENSIONS[name]))} axes, found {shape}.",
                reason="wrong-shape",
                field=name,
            )
        tensors[name] = torch.frombuffer(cast(bytearray, entry["data"]), dtype=torch.float32).reshape(shape)
        _check_finite(name, tensors[name])
    return tensors


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise PromptSetRefused(
            f"{int((~tensor.isfinite()).sum())} of {tensor.numel()} values are NaN or infinite.",
            reason="not-finite",
            field=name,
        )


def _not_safetensors(detail: str) -> PromptSetRefused:
    return PromptSetRefused(
        f"not a whole safetensors file: {detail}.", reason="not-safetensors", help="Copy or publish it again."
    )
