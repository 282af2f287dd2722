"""The towers with prompts: equal to open_clip without them, differentiable at every depth with them."""

import open_clip
import pytest
import torch
from torch.nn import functional as F

from robustclip.backbones import build_backbone
from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip, describe
from robustclip.models.prompts import Prompts
from robustclip.models.towers import check_prompts, encode_image, encode_text

STEMMED = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    "stem": "efficientnet_lite0",
}


@pytest.fixture(
    scope="module",
    params=[
        "tiny",
        "stemmed",
        pytest.param("ViT-B-32", marks=pytest.mark.slow),
        pytest.param("ViT-B-16", marks=pytest.mark.slow),
    ],
)
def clip(request: pytest.FixtureRequest, tiny: Clip) -> Clip:
    if request.param == "tiny":
        return tiny
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (
            build_backbone(STEMMED)
            if request.param == "stemmed"
            else open_clip.create_model(request.param, precision="fp32", load_weights=False)
        )
    return describe(model, request.param, "seeded")


def pixels(clip: Clip, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(1))


def test_images_are_encoded_as_open_clip_does(clip: Clip) -> None:
    images = pixels(clip)
    with torch.no_grad():
        ours = F.normalize(encode_image(clip, images), dim=-1)
        theirs = clip.model.encode_image(
            (images - clip.mean[:, None, None]) / clip.std[:, None, None], normalize=True
        )
    assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "texts",
    [
        [
            "a cat",
            "a photo of a dog.",
            "the quick brown fox jumps over the lazy dog",
            "日本語",
            "word " * 100,
        ],
        ["a photo of a cat.", "a photo of a fire engine.", "a photo of a photo of a dog."],
        ["a photo of a cat."],
        ["a photo of", "a photo of a photo"],
    ],
)
def test_texts_are_encoded_as_open_clip_does(clip: Clip, texts: list[str]) -> None:
    tokens = clip.tokenize(texts)
    with torch.no_grad():
        ours = F.normalize(encode_text(clip, tokens), dim=-1)
        theirs = clip.model.encode_text(tokens, normalize=True)
    assert (ours - theirs).abs().max() <= 1e-6


def test_vectors_that_are_word_embeddings_equal_the_words(tiny: Clip) -> None:
    words, alone = tiny.tokenize(["a photo of a cat."]), tiny.tokenize(["cat."])
    vectors = tiny.model.token_embedding(words[0, 1:5])[None]
    torch.testing.assert_close(
        encode_text(tiny, alone, vectors), encode_text(tiny, words), atol=1e-5, rtol=1e-5
    )


def test_a_context_a_row_of_word_embeddings_equals_those_words_before_labels_of_any_length(
    clip: Clip,
) -> None:
    whole = clip.tokenize(["a photo of cats.", "one drawing of a rather long label.", "my dog sees it"])
    alone = clip.tokenize(["cats.", "a rather long label.", "it"])
    with torch.no_grad():
        contexts = clip.model.token_embedding(whole[:, 1:4])[:, None]
        ours = F.normalize(encode_text(clip, alone, contexts), dim=-1)
        theirs = clip.model.encode_text(whole, normalize=True)
    assert (ours - theirs).abs().max() <= 2e-6


def test_a_context_a_row_equals_each_context_alone(tiny: Clip) -> None:
    contexts = torch.randn(2, 2, 3, tiny.text_width, generator=torch.Generator().manual_seed(2))
    tokens = tiny.tokenize(["cat.", "a rather long label."])
    together = encode_text(tiny, tokens, contexts)
    for row in range(2):
        torch.testing.assert_close(
            together[row], encode_text(tiny, tokens[row : row + 1], contexts[row])[0], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("depth", [1, 2])
def test_a_shared_context_computed_once_equals_one_a_row(clip: Clip, depth: int) -> None:
    context = (
        0.1 * torch.randn(depth, 5, clip.text_width, generator=torch.Generator().manual_seed(2))
    ).requires_grad_()
    tokens = clip.tokenize(["cat.", "a rather long label.", "dog."])
    shared = F.normalize(encode_text(clip, tokens, context), dim=-1)
    each = F.normalize(encode_text(clip, tokens, context.expand(3, -1, -1, -1)), dim=-1)
    torch.testing.assert_close(shared, each, atol=2e-6, rtol=0)
    towards = torch.randn(shared.shape, generator=torch.Generator().manual_seed(3))
    gradients = [torch.autograd.grad((features * towards).sum(), context)[0] for features in (shared, each)]
    torch.testing.assert_close(
        gradients[0], gradients[1], atol=1e-4 * float(gradients[1].abs().max()), rtol=1e-3
    )


def test_deep_prompts_receive_gradients_at_every_depth_in_both_towers(clip: Clip) -> None:
    assert clip.visual_width is not None
    generator = torch.Generator().manual_seed(3)
    text = (0.1 * torch.randn(2, 3, clip.text_width, generator=generator)).requires_grad_()
    visual = (0.1 * torch.randn(2, 3, clip.visual_width, generator=generator)).requires_grad_()
    features = F.normalize(encode_text(clip, clip.tokenize(["cat.", "dog."]), text), dim=-1)
    images = F.normalize(encode_image(clip, pixels(clip), visual), dim=-1)
    (images @ features.T)[:, 0].sum().backward()
    for gradient in (text.grad, visual.grad):
        assert gradient is not None
        assert (gradient.abs().amax(dim=(1, 2)) > 0).all()


def test_visual_prompts_change_the_feature_and_leave_the_rows_independent(tiny: Clip) -> None:
    visual = torch.randn(1, 2, tiny.visual_width or 0, generator=torch.Generator().manual_seed(4))
    images = pixels(tiny, 3)
    prompted = encode_image(tiny, images, visual)
    assert (prompted - encode_image(tiny, images)).abs().max() > 1e-3
    torch.testing.assert_close(prompted[1:2], encode_image(tiny, images[1:2], visual), atol=1e-5, rtol=1e-5)


def test_too_many_vectors_for_a_label_name_the_labels(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="at most 77"):
        encode_text(tiny, tiny.tokenize(["a label of several words"]), torch.zeros(1, 72, tiny.text_width))


def test_pixels_of_another_size_are_refused(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="expected pixels"):
        encode_image(tiny, torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    "prompts",
    [
        Prompts(text=torch.zeros(1, 4, 7)),
        Prompts(text=torch.zeros(9, 4, 32)),
        Prompts(text=torch.zeros(1, 76, 32)),
        Prompts(visual=torch.zeros(1, 4, 7)),
        Prompts(visual=torch.zeros(5, 4, 64)),
    ],
)
def test_tensors_that_do_not_fit_the_towers_are_refused(tiny: Clip, prompts: Prompts) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_prompts(tiny, prompts)
    assert refusal.value.field in ("text_context", "visual_context")
