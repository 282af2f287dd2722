from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import InvalidInput
from robustclip.models.capabilities import Capabilities
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import check_prompts
from training.learning.objectives.contexts import Coupling, Towers, fold, new_contexts, split_words

LABELS = ("cat", "fire salamander", "a rather long name")
COUPLINGS: tuple[Coupling, ...] = ("none", "image_to_text", "text_to_image", "hybrid")
WORDS = "a photo of a"


def start(
    clip: Clip,
    coupling: Coupling,
    *,
    depth: int = 2,
    words: str = WORDS,
    towers: Towers = "both",
    seed: int = 0,
) -> tuple[dict[str, Tensor], Prompts]:
    parameters = new_contexts(
        clip, vectors=2, depth=depth, words=words, coupling=coupling, towers=towers, seed=seed
    )
    return parameters, fold(clip, parameters, vectors=2, words=words)


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("depth", [1, 2, 9])
def test_what_is_exported_is_plain_prompts_that_fit_the_towers(
    tiny: Clip, coupling: Coupling, depth: int
) -> None:
    _, prompts = start(tiny, coupling, depth=depth)
    check_prompts(tiny, prompts)
    assert prompts.text is not None
    assert prompts.visual is not None
    layers = min(depth, 2)
    assert (prompts.text.shape, prompts.visual.shape) == ((layers, 2, 32), (layers, 2, 64))
    assert prompts.templates == ("of a {}.",)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_gradients_reach_every_parameter(tiny: Clip, coupling: Coupling) -> None:
    parameters, _ = start(tiny, coupling)
    for tensor in parameters.values():
        tensor.requires_grad_()
    prompts = fold(tiny, parameters, vectors=2, words=WORDS)
    assert prompts.text is not None
    assert prompts.visual is not None
    (prompts.text.sum() + prompts.visual.sum()).backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in parameters.values())


def test_learning_starts_at_the_handcrafted_prompt(tiny: Clip) -> None:
    _, prompts = start(tiny, "none", depth=1)
    torch.testing.assert_close(
        text_weights(tiny, replace(prompts, visual=None), LABELS),
        text_weights(tiny, Prompts(), LABELS),
        atol=1e-5,
        rtol=1e-5,
    )


def test_a_context_for_each_label_starts_where_the_shared_one_does(tiny: Clip) -> None:
    options = {"vectors": 2, "words": WORDS}
    shared = new_contexts(tiny, **options, depth=2, coupling="none", towers="both", seed=0)
    own = new_contexts(tiny, **options, depth=2, coupling="none", towers="both", seed=0, copies=len(LABELS))
    prompts = fold(tiny, own, **options, class_specific=True)
    check_prompts(tiny, prompts)
    torch.testing.assert_close(own["visual"], shared["visual"])
    before = text_weights(tiny, prompts, LABELS)
    torch.testing.assert_close(before, text_weights(tiny, fold(tiny, shared, **options), LABELS))
    own["text"][1] = torch.randn(own["text"][1].shape, generator=torch.Generator().manual_seed(0))
    moved = text_weights(tiny, fold(tiny, own, **options, class_specific=True), LABELS)
    assert (moved - before).abs().amax(dim=1).gt(1e-4).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("coupling", "towers"), [("image_to_text", "both"), ("hybrid", "both"), ("none", "image")]
)
def test_a_context_for_each_label_follows_nobody(tiny: Clip, coupling: Coupling, towers: Towers) -> None:
    with pytest.raises(
        InvalidInput, match="a context for each label can't follow vectors that all share"
    ) as caught:
        new_contexts(
            tiny, vectors=2, depth=2, words=WORDS, coupling=coupling, towers=towers, seed=0, copies=3
        )
    assert caught.value.field == "--objective.class_specific"


def test_text_follows_images_layer_by_layer(tiny: Clip) -> None:
    parameters, prompts = start(tiny, "image_to_text")
    words = tiny.model.token_embedding(tiny.tokenize(["a photo"])[0, 1:3])
    for layer, offset in enumerate([words, torch.zeros_like(words)]):
        weight, bias = parameters["image_to_text.weight"][layer], parameters["image_to_text.bias"][layer, 0]
        assert prompts.text is not None
        torch.testing.assert_close(
            prompts.text[layer], F.linear(parameters["visual"][layer], weight, bias) + offset
        )


def test_images_follow_text_layer_by_layer(tiny: Clip) -> None:
    parameters, prompts = start(tiny, "text_to_image")
    for layer in range(2):
        weight, bias = parameters["text_to_image.weight"][layer], parameters["text_to_image.bias"][layer, 0]
        assert prompts.visual is not None
        torch.testing.assert_close(prompts.visual[layer], F.linear(parameters["text"][layer], weight, bias))


def test_the_hybrid_couples_the_input_layer_from_text_and_the_deeper_ones_from_images(tiny: Clip) -> None:
    parameters, prompts = start(tiny, "hybrid")
    assert parameters["text"].shape == (1, 2, 32)
    assert parameters["visual"].shape == (1, 2, 64)
    assert prompts.text is not None
    assert prompts.visual is not None
    torch.testing.assert_close(
        prompts.visual[0], F.linear(parameters["text"][0], parameters["text_to_image.weight"][0])
    )
    torch.testing.assert_close(
        prompts.text[1], F.linear(parameters["visual"][0], parameters["image_to_text.weight"][0])
    )


@pytest.mark.parametrize(
    ("towers", "modalities"), [("both", ("text", "vision")), ("text", ("text",)), ("image", ("vision",))]
)
def test_one_tower_alone_can_learn(tiny: Clip, towers: Towers, modalities: tuple[str, ...]) -> None:
    _, prompts = start(tiny, "none", towers=towers)
    assert prompts.modalities == modalities
    assert prompts.templates == (("a photo of a {}.",) if towers == "image" else ("of a {}.",))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_start_depends_on_the_seed_alone(tiny: Clip, coupling: Coupling) -> None:
    before = torch.get_rng_state()
    digests = [start(tiny, coupling, seed=seed)[1].digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(before, torch.get_rng_state())


def test_words_that_are_more_than_one_token_are_refused_by_name(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="tokens, but there are 2 vectors") as refusal:
        start(tiny, "none", words="a photomicrograph of a")
    assert refusal.value.field == "--objective.words"


def test_a_tower_without_visual_prompts_is_refused(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="takes no visual prompts"):
        start(replace(tiny, capabilities=Capabilities(visual_prompts="its image tower is a ResNet.")), "none")


def test_words_beyond_the_vectors_stay_in_the_template() -> None:
    assert split_words(WORDS, 2) == ("a photo", "of a {}.")
    assert split_words(WORDS, 4) == (WORDS, "{}.")
    assert split_words("", 4) == ("", "{}.")
