"""Files that somebody else wrote: each is refused with its reason, quickly, and says what was found."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from prompt_sets import learned_set
from safetensors.numpy import save

from prompts_store.codec import MAX_BYTES, decode, encode
from prompts_store.shelf import Shelf
from prompts_store.store import PromptStore
from robustclip.errors import PromptSetRefused
from robustclip.models.clip import Clip

CONTEXT = numpy.zeros((1, 4, 32), numpy.float32)


def file_of(
    tiny: Clip, tensors: dict[str, Any] | None = None, metadata: dict[str, str] | None = None, **manifest: Any
) -> bytes:
    """A set's file with other tensors, other metadata, or other facts in its manifest."""
    facts = json.loads(learned_set(tiny).manifest.canonical()) | manifest
    return save(
        {"text_context": CONTEXT} if tensors is None else tensors, metadata or {"manifest": json.dumps(facts)}
    )


def with_context(**changes: Any) -> Callable[[Clip], bytes]:
    return lambda tiny: file_of(tiny, {"text_context": CONTEXT.copy(), **changes})


def with_values(value: float) -> Callable[[Clip], bytes]:
    context = CONTEXT.copy()
    context[0, 3, 31] = value
    return with_context(text_context=context)


HOSTILE: list[tuple[str, str, Callable[[Clip], bytes]]] = [
    ("empty", "not-safetensors", lambda tiny: b""),
    ("a text", "not-safetensors", lambda tiny: b"this is not the file that you are looking for"),
    ("a pickle", "not-safetensors", lambda tiny: b"\x80\x04\x95" + bytes(100)),
    ("cut in the header", "not-safetensors", lambda tiny: file_of(tiny)[:200]),
    ("cut in the tensor", "not-safetensors", lambda tiny: file_of(tiny)[:-1]),
    ("with bytes behind", "not-safetensors", lambda tiny: file_of(tiny) + b"\x00"),
    ("a header of 2^63 bytes", "not-safetensors", lambda tiny: struct.pack("<Q", 2**63) + bytes(100)),
    (
        "a header of five million brackets",
        "not-safetensors",
        lambda tiny: struct.pack("<Q", 5_000_000) + b"[" * 5_000_000,
    ),
    (
        "a header nested a million deep",
        "not-safetensors",
        lambda tiny: struct.pack("<Q", 10**6) + b"[" * 10**6,
    ),
    ("a header that is a list", "not-safetensors", lambda tiny: struct.pack("<Q", 2) + b"[]"),
    (
        "overlapping tensors",
        "not-safetensors",
        lambda tiny: file_of(tiny).replace(b'"data_offsets":[0,512]', b'"data_offsets":[0,999]'),
    ),
    ("no metadata", "manifest-invalid", lambda tiny: save({"text_context": CONTEXT})),
    (
        "16 metadata keys",
        "manifest-invalid",
        lambda tiny: file_of(tiny, metadata={f"manifest{i or ''}": "{}" for i in range(16)}),
    ),
    (
        "a manifest that is no JSON",
        "manifest-invalid",
        lambda tiny: file_of(tiny, metadata={"manifest": "name: demo"}),
    ),
    (
        "a manifest that is a list",
        "manifest-invalid",
        lambda tiny: file_of(tiny, metadata={"manifest": "[1]"}),
    ),
    (
        "a manifest nested deep",
        "manifest-invalid",
        lambda tiny: file_of(tiny, metadata={"manifest": '{"objective":' * 5000 + "1" + "}" * 5000}),
    ),
    ("an unknown key", "manifest-invalid", lambda tiny: file_of(tiny, colour="red")),
    (
        "a NaN in the objective",
        "manifest-invalid",
        lambda tiny: file_of(tiny, objective={"kind": "advpt", "eps": float("nan")}),
    ),
    ("a time without zone", "manifest-invalid", lambda tiny: file_of(tiny, created_at="2026-01-01T00:00:00")),
    ("a template without a place", "manifest-invalid", lambda tiny: file_of(tiny, templates=["a photo"])),
    (
        "a template that formats",
        "manifest-invalid",
        lambda tiny: file_of(tiny, templates=["{} {0.__class__}"]),
    ),
    ("tensors that fit any CLIP", "manifest-invalid", lambda tiny: file_of(tiny, clip=None)),
    ("format version 2", "format-version", lambda tiny: file_of(tiny, format_version=2)),
    ("format version one, spelled", "format-version", lambda tiny: file_of(tiny, format_version="1")),
    ("a path for a name", "bad-name", lambda tiny: file_of(tiny, name="../../etc/passwd")),
    ("a name of 65 letters", "bad-name", lambda tiny: file_of(tiny, name="a" * 65)),
    (
        "another CLIP's",
        "foreign-fingerprint",
        lambda tiny: file_of(tiny, clip={"arch": "tiny", "pretrained": "embedded", "fingerprint": "0" * 64}),
    ),
    ("an unknown tensor", "unknown-tensor", with_context(weights=CONTEXT)),
    ("half precision", "wrong-dtype", with_context(text_context=CONTEXT.astype(numpy.float16))),
    ("integers", "wrong-dtype", with_context(text_context=CONTEXT.astype(numpy.int64))),
    ("NaN", "not-finite", with_values(numpy.nan)),
    ("infinity", "not-finite", with_values(-numpy.inf)),
    ("two axes", "wrong-shape", with_context(text_context=CONTEXT[0])),
    ("no vectors", "wrong-shape", with_context(text_context=CONTEXT[:, :0])),
    ("another width", "wrong-shape", with_context(text_context=CONTEXT[:, :, :31])),
    ("more layers than the tower has", "wrong-shape", with_context(text_context=CONTEXT.repeat(3, axis=0))),
    (
        "more vectors than the tower takes",
        "wrong-shape",
        with_context(text_context=CONTEXT.repeat(19, axis=1)),
    ),
    ("visual vectors of the text's width", "wrong-shape", with_context(visual_context=CONTEXT)),
    (
        "contexts of other labels",
        "wrong-shape",
        lambda tiny: file_of(tiny, {"text_context": CONTEXT[None].repeat(3, axis=0)}, class_specific=True),
    ),
]


@pytest.mark.parametrize(
    ("reason", "make"), [pytest.param(reason, make, id=name) for name, reason, make in HOSTILE]
)
def test_hostile_file_is_refused_with_its_reason(
    tiny: Clip, reason: str, make: Callable[[Clip], bytes]
) -> None:
    with pytest.raises(PromptSetRefused) as refused:
        decode(make(tiny), clip=tiny)
    assert refused.value.reason == reason
    assert len(str(refused.value)) < 600


def test_the_table_starts_from_a_file_that_is_accepted(tiny: Clip) -> None:
    assert decode(file_of(tiny), clip=tiny).manifest.name == "demo"


def stored(root: Path, tiny: Clip) -> Shelf:
    """The shelf of one published, active version."""
    ref = PromptStore(root).publish(learned_set(tiny), activate=True)
    return Shelf(root / tiny.fingerprint[:8] / ref.name)


def reason_of_loading(root: Path, tiny: Clip, ref: str = "demo") -> str:
    with pytest.raises(PromptSetRefused) as refused:
        PromptStore(root).load(ref, tiny)
    return refused.value.reason


def test_a_changed_byte_is_noticed(tmp_path: Path, tiny: Clip) -> None:
    shelf = stored(tmp_path, tiny)
    path = shelf.file(shelf.versions()[0])
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    assert reason_of_loading(tmp_path, tiny) == "digest-mismatch"


def test_a_file_of_another_name_folder_or_clip_is_noticed(tmp_path: Path, tiny: Clip) -> None:
    shelf = stored(tmp_path, tiny)
    (version,) = shelf.versions()
    data = shelf.file(version).read_bytes()
    for folder, reason in (
        (f"{tiny.fingerprint[:8]}/other", "bad-name"),
        ("any/demo", "foreign-fingerprint"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{version}.safetensors").write_bytes(data)
        assert reason in {finding.reason for finding in PromptStore(tmp_path).verify(tiny)}


def test_a_sparse_file_of_a_terabyte_is_refused_unread(tmp_path: Path, tiny: Clip) -> None:
    shelf = stored(tmp_path, tiny)
    os.truncate(shelf.file(shelf.versions()[0]), 2**40)
    assert reason_of_loading(tmp_path, tiny) == "too-large"
    with pytest.raises(PromptSetRefused) as refused:
        decode(bytes(MAX_BYTES + 1), clip=None)
    assert refused.value.reason == "too-large"


def test_links_folders_and_pipes_are_no_files(tmp_path: Path, tiny: Clip) -> None:
    shelf = stored(tmp_path / "store", tiny)
    path = shelf.file(shelf.versions()[0])
    real = path.rename(tmp_path / "elsewhere.safetensors")
    path.symlink_to(real)
    assert reason_of_loading(tmp_path / "store", tiny) == "not-a-file"
    path.unlink()
    path.mkdir()
    assert reason_of_loading(tmp_path / "store", tiny) == "not-a-file"
    path.rmdir()
    os.mkfifo(path)  # reading one would wait for ever
    assert reason_of_loading(tmp_path / "store", tiny) == "not-a-file"


def test_a_linked_folder_is_not_followed(tmp_path: Path, tiny: Clip) -> None:
    shelf = stored(tmp_path / "store", tiny)
    shelf.path.rename(tmp_path / "elsewhere")
    shelf.path.symlink_to(tmp_path / "elsewhere")
    assert reason_of_loading(tmp_path / "store", tiny) == "not-a-file"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"../../x\n",
        b"3f9c21d07b1e\n3f9c21d07b1e\n3f9c21d07b1e\n",
        b"\xff" * 12,
        b"3F9C21D07B1E",
        bytes(10**6),
    ],
)
def test_a_damaged_pointer_is_refused_and_shown(tmp_path: Path, tiny: Clip, content: bytes) -> None:
    shelf = stored(tmp_path, tiny)
    (shelf.path / "ACTIVE").write_bytes(content)
    store = PromptStore(tmp_path)
    assert reason_of_loading(tmp_path, tiny) in {"bad-pointer", "too-large"}
    assert store.active(tiny.fingerprint) == {}
    assert {finding.path for finding in store.verify()} == {f"{tiny.fingerprint[:8]}/demo/ACTIVE"}
    store.activate(f"demo@{shelf.versions()[0]}", tiny.fingerprint)
    assert store.load("demo", tiny).version == shelf.versions()[0]


def test_publishing_again_repairs_a_damaged_file(tmp_path: Path, tiny: Clip) -> None:
    shelf = stored(tmp_path, tiny)
    shelf.file(shelf.versions()[0]).write_bytes(encode(learned_set(tiny))[:-100])
    assert reason_of_loading(tmp_path, tiny) == "not-safetensors"
    PromptStore(tmp_path).publish(learned_set(tiny))
    assert PromptStore(tmp_path).load("demo", tiny).version == learned_set(tiny).version
