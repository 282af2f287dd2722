from dataclasses import replace

import pytest
import torch
from prompt_sets import learned_set, template_set
from safetensors.torch import load

from prompts_store.codec import decode, encode
from prompts_store.manifest import PromptSet
from robustclip.errors import PromptSetRefused
from robustclip.models.clip import Clip


def class_specific_set(clip: Clip) -> PromptSet:
    one = learned_set(clip)
    return PromptSet(
        one.manifest.model_copy(update={"class_specific": True}),
        replace(one.prompts, text=torch.ones(2, 1, 4, clip.text_width), class_specific=True),
    )


@pytest.mark.parametrize("kind", ["text", "visual", "class-specific", "words"])
def test_every_kind_of_set_survives_the_round_trip(tiny: Clip, kind: str) -> None:
    prompt_set = {
        "text": lambda: learned_set(tiny),
        "visual": lambda: learned_set(tiny, visual=True),
        "class-specific": lambda: class_specific_set(tiny),
        "words": lambda: template_set("a photo of a {}.", "art of the {}."),
    }[kind]()
    found = decode(encode(prompt_set), clip=tiny)
    assert found.manifest == prompt_set.manifest
    assert found.prompts.digest() == prompt_set.prompts.digest()
    assert found.version == prompt_set.version


def test_encoding_is_deterministic(tiny: Clip) -> None:
    assert len({encode(learned_set(tiny, visual=True)) for _ in range(8)}) == 1


def test_the_file_is_plain_safetensors(tiny: Clip) -> None:
    prompt_set = learned_set(tiny, visual=True)
    tensors = load(encode(prompt_set))
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "text_context": [1, 4, 32],
        "visual_context": [2, 3, 64],
    }
    assert prompt_set.prompts.text is not None
    assert torch.equal(tensors["text_context"], prompt_set.prompts.text)


def test_nothing_is_encoded_that_would_be_refused(tiny: Clip) -> None:
    one = learned_set(tiny)
    with pytest.raises(PromptSetRefused) as refused:
        encode(PromptSet(one.manifest, replace(one.prompts, text=torch.full((1, 4, 32), torch.nan))))
    assert (refused.value.reason, refused.value.field) == ("not-finite", "text_context")


def test_decoded_vectors_may_be_changed_without_touching_the_bytes(tiny: Clip) -> None:
    data = encode(learned_set(tiny))
    found = decode(data, clip=tiny).prompts.text
    assert found is not None
    found.zero_()
    assert decode(data, clip=tiny).version == learned_set(tiny).version
