"""A small model of each family of open_clip: pixels, tokens, features, logits, gradients are open_clip's.

Layers, width and vocabulary are cut down; kinds of blocks, pooling, mask and preprocessing are kept.
"""

import copy
import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import open_clip
import pytest
import timm
import torch
from clip_folders import cut_down, write_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn import functional as F

from robustclip.errors import InvalidInput
from robustclip.models.architectures import pictures_of_tag, wants_quick_gelu
from robustclip.models.classifier import zero_shot
from robustclip.models.clip import Clip, load_clip
from robustclip.models.prompts import Prompts
from robustclip.models.text import native_text
from robustclip.models.towers import check_prompts, encode_image, encode_text, patch_tokens
from robustclip.preprocessing import to_pixels
from robustclip.seeds import draw_seeds

VIT = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32}
LABELS = ("cat", "dog", "red rocket", "small fish")
TEXTS = [f"a photo of a {label}." for label in LABELS]


@dataclass(frozen=True)
class Family:
    """An architecture and a tag that stand for others; `trunk`: how timm's tower is cut down."""

    arch: str
    tag: str
    tokenizer: str = ""
    size: int = 32
    width: int = 64
    trunk: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.arch}-{self.tag}"


FAMILIES = [
    Family("RN50", "openai", size=64),
    Family("ViT-B-32", "laion2b_s34b_b79k"),
    Family("ViT-H-14", "dfn5b"),
    Family("convnext_base", "laion400m_s13b_b51k", trunk={"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 64)}),
    Family("EVA02-B-16", "merged2b_s8b_b131k", trunk=VIT),
    Family("PE-Core-T-16-384", "meta", trunk=VIT),
    Family("MobileCLIP2-S0", "dfndr2b", trunk={"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 64)}),
    Family("MobileCLIP2-L-14", "dfndr2b", size=28, trunk=VIT | {"img_size": 28}),
    Family("ViTamin-S", "datacomp1b", size=64, trunk={"img_size": 64}),
    Family("ViT-B-16-SigLIP", "webli", "t5", trunk=VIT),
    Family("ViT-SO400M-16-SigLIP2-256", "webli", "t5", trunk=VIT),
    Family("ViT-L-14-CLIPA", "datacomp1b", "bert"),
    Family("ViT-H-14-worldwide", "metaclip2_worldwide", "roberta"),
    Family("roberta-ViT-B-32", "laion2b_s12b_b32k", "roberta"),
    Family("nllb-clip-base-siglip", "v1", "roberta", trunk=VIT),
]


def text_tower_of(kind: str) -> dict[str, Any]:
    """A small configuration of the transformers package for the towers that open_clip takes from there."""
    sizes = {"vocab_size": 64, "pad_token_id": 1}
    if kind.startswith("nllb"):
        layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        return {"model_type": "m2m_100", "d_model": 32, **layers, **heads, **sizes}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return {"model_type": "roberta", "hidden_size": 32, "max_position_embeddings": 96, **layers, **sizes}


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Clip]:
    """The family's small model, by its name and loaded."""
    family: Family = request.param
    if family.tokenizer:
        pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    config = cut_down(
        open_clip.get_model_config(family.arch) or {}, image_size=family.size, embed_dim=family.width
    )
    config |= {"quick_gelu": True} if wants_quick_gelu(family.arch, family.tag) else {}
    text = config["text_cfg"]
    if "hf_model_name" in text:
        (folder / "text").mkdir()
        (folder / "text" / "config.json").write_text(json.dumps(text_tower_of(family.arch)))
        text["hf_model_name"] = "text"  # a folder inside the folder
        for key in ("layers", "width", "heads"):
            del text[key]
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda *names, **more: create(*names, **more, **family.trunk))
        pictures = pictures_of_tag(family.arch, family.tag)
        name = write_clip(folder, config, pictures, tokenizer=family.tokenizer)
        return name, load_clip(name)


@pytest.fixture
def clip(loaded: tuple[str, Clip]) -> Clip:
    return loaded[1]


def picture(width: int, height: int) -> Image.Image:
    noise = numpy.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=numpy.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def as_float64(clip: Clip) -> Clip:
    """A copy whose weights have double precision, for finite differences."""
    return replace(
        clip, model=copy.deepcopy(clip.model).double(), mean=clip.mean.double(), std=clip.std.double()
    )


def test_pixels_are_those_of_open_clips_own_transform(clip: Clip) -> None:
    config = PreprocessCfg(**{**clip.model.visual.preprocess_cfg, "size": clip.image_size})
    transform = image_transform_v2(config, is_train=False)
    for size in ((120, 80), (50, 90), (64, 64)):
        ours = to_pixels(picture(*size), clip.preprocessing)
        theirs = transform(picture(*size)) * clip.std[:, None, None] + clip.mean[:, None, None]
        difference = ((ours - theirs) * 255).abs()
        if clip.preprocessing.resize_mode == "shortest":  # Pillow orders the passes of a crop differently
            assert (difference > 1.01).float().mean() < 1e-3
            assert difference.max() < 2.01
        else:
            assert difference.max() < 1e-3


def test_tokens_features_and_logits_are_open_clips(loaded: tuple[str, Clip]) -> None:
    name, clip = loaded
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    assert torch.equal(clip.tokenize(TEXTS), tokens)
    pixels = to_pixels(picture(90, 70), clip.preprocessing)[None]
    with torch.no_grad():
        normalised = (pixels - clip.mean[:, None, None]) / clip.std[:, None, None]
        image = clip.model.encode_image(normalised, normalize=True)
        words = clip.model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(F.normalize(encode_image(clip, pixels), dim=-1), image, atol=2e-6, rtol=0)
        torch.testing.assert_close(F.normalize(encode_text(clip, tokens), dim=-1), words, atol=2e-6, rtol=0)
        logits = zero_shot(clip, Prompts(), LABELS)(pixels, draw_seeds(0, 1))
        bias = getattr(clip.model, "logit_bias", None)
        expected = clip.model.logit_scale.exp() * image @ words.T + (0 if bias is None else bias)
    # with a logit bias the default is a sigmoid for each label, whose last column stands for none of them
    torch.testing.assert_close(logits[:, : len(LABELS)], expected, atol=1e-4, rtol=0)
    assert clip.embed_dim == words.shape[1] == image.shape[1]


def test_the_gradient_in_pixels_is_that_of_finite_differences(clip: Clip) -> None:
    double = as_float64(clip)
    size, generator = clip.image_size, torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, size, size, generator=generator, dtype=torch.float64).requires_grad_()
    towards = torch.randn(clip.embed_dim, generator=generator, dtype=torch.float64)
    way = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)

    def value(inputs: torch.Tensor) -> torch.Tensor:
        return (F.normalize(encode_image(double, inputs), dim=-1) @ towards).sum()

    (gradient,) = torch.autograd.grad(value(pixels), pixels)
    with torch.no_grad():
        slope = (value(pixels + 1e-7 * way) - value(pixels - 1e-7 * way)) / 2e-7
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-4, atol=1e-6)


def test_vectors_that_are_word_embeddings_equal_the_words(clip: Clip) -> None:
    text = native_text(clip.model)
    if text is None:
        with pytest.raises(InvalidInput, match="takes no text prompts"):
            check_prompts(clip, Prompts(text=torch.zeros(1, 2, 8)))
        return
    first = clip.tokenize.leading
    whole = clip.tokenize(["a photo of a cat.", "a photo of a red dog."])
    alone = clip.tokenize(["a cat.", "a red dog."])
    with torch.no_grad():
        context = text.tokens(whole[0, first : first + 3])[None]
        expected = clip.model.encode_text(whole, normalize=True)
        for shape in (context, context.expand(2, -1, -1, -1)):
            ours = F.normalize(encode_text(clip, alone, shape), dim=-1)
            torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


def test_deep_vectors_receive_gradients_in_both_towers(clip: Clip) -> None:
    generator = torch.Generator().manual_seed(1)
    if clip.text_width:
        text = (0.1 * torch.randn(2, 3, clip.text_width, generator=generator)).requires_grad_()
        encode_text(clip, clip.tokenize(["a cat.", "a red dog."]), text).square().sum().backward()
        assert text.grad is not None
        assert bool((text.grad.abs().amax(dim=(1, 2)) > 0).all())
    if clip.visual_width is None:
        with pytest.raises(InvalidInput, match="takes no visual prompts"):
            check_prompts(clip, Prompts(visual=torch.zeros(1, 2, 8)))
        return
    visual = (0.1 * torch.randn(2, 3, clip.visual_width, generator=generator)).requires_grad_()
    pixels = torch.rand(2, 3, clip.image_size, clip.image_size, generator=generator)
    encode_image(clip, pixels, visual).square().sum().backward()
    assert visual.grad is not None
    assert bool((visual.grad.abs().amax(dim=(1, 2)) > 0).all())
    assert patch_tokens(clip, pixels).shape[2] == clip.visual_width


def test_a_text_that_does_not_fit_is_refused_and_not_cut(clip: Clip) -> None:
    long = " ".join(["cat dog"] * clip.context_length)
    with pytest.raises(InvalidInput, match="tokens fit") as refusal:
        zero_shot(clip, Prompts(), ("dog", long))
    assert refusal.value.field == "labels/1"
