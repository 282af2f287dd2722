import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch
from prompt_sets import learned_set, template_set
from pydantic import ValidationError

from prompts_store.manifest import PromptSet, Ref
from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip


def test_version_is_the_digest_that_format_md_describes(tiny: Clip) -> None:
    prompt_set = learned_set(tiny, visual=True)
    facts = json.loads(prompt_set.manifest.model_dump_json())
    del facts["created_at"]
    state = hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in (
        ("text_context", prompt_set.prompts.text),
        ("visual_context", prompt_set.prompts.visual),
    ):
        assert tensor is not None
        state.update(
            f"\n{name} F32 {json.dumps(list(tensor.shape), separators=(',', ':'))}\n".encode()
            + tensor.numpy().tobytes()
        )
    assert prompt_set.version == state.hexdigest()[:12]


def test_version_ignores_when_a_set_was_made(tiny: Clip) -> None:
    later = datetime(2030, 1, 1, tzinfo=UTC)
    assert learned_set(tiny, created_at=later).version == learned_set(tiny).version


def test_version_counts_every_value_and_every_fact(tiny: Clip) -> None:
    one = learned_set(tiny)
    assert one.prompts.text is not None
    nudged = one.prompts.text.clone()
    nudged[0, 0, 0] += 1e-6
    others = [
        PromptSet(one.manifest, replace(one.prompts, text=nudged)),
        learned_set(tiny, note="x"),
        learned_set(tiny, shots=1),
    ]
    assert len({one.version, *(other.version for other in others)}) == 4


def test_version_does_not_depend_on_device_layout_or_precision_of_the_source(tiny: Clip) -> None:
    one = learned_set(tiny)
    assert one.prompts.text is not None
    strided = one.prompts.text.double().transpose(1, 2).contiguous().transpose(1, 2)
    assert PromptSet(one.manifest, replace(one.prompts, text=strided.requires_grad_())).version == one.version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", Ref("a", "active")),
        ("a-1@active", Ref("a-1", "active")),
        ("a@3f9c21d07b1e", Ref("a", "3f9c21d07b1e")),
    ],
)
def test_ref_is_read_and_written_the_same_way(text: str, expected: Ref) -> None:
    assert Ref.parse(text) == expected
    assert Ref.parse(str(expected)) == expected
    assert expected.pinned == ("3f" in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "a@",
        "A",
        "-a",
        "../a",
        "a/b",
        "a\n",
        "a@b",
        "a@../x",
        "a@3F9C21D07B1E",
        "a@3f9c21d07b1e@active",
        "a" * 65,
        "é",
        "a\x00",
    ],
)
def test_ref_refuses_whatever_is_no_name(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Ref.parse(text)
    assert refused.value.field == "prompt_set"


def test_manifest_refuses_unknown_keys_and_objectives_without_a_kind(tiny: Clip) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        learned_set(tiny, colour="red")
    with pytest.raises(ValidationError, match="kind"):
        learned_set(tiny, objective={"vectors": 4})


def test_set_and_manifest_must_say_the_same(tiny: Clip) -> None:
    one = learned_set(tiny)
    with pytest.raises(InvalidInput, match="templates"):
        PromptSet(one.manifest, replace(one.prompts, templates=("a {}",)))
    with pytest.raises(InvalidInput, match="belong to one CLIP"):
        PromptSet(one.manifest.model_copy(update={"clip": None}), one.prompts)
    contexts = replace(one.prompts, text=torch.zeros(3, 1, 4, tiny.text_width), class_specific=True)
    with pytest.raises(InvalidInput, match="for 3 labels, found 2"):
        PromptSet(one.manifest.model_copy(update={"class_specific": True}), contexts)


def test_a_set_of_words_fits_any_clip() -> None:
    assert template_set("a photo of a {}.").manifest.clip is None
