"""Loading: what is served, what is refused by name, and the fingerprint."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robustclip.errors import UnsupportedClip
from robustclip.models.clip import Clip, describe, fingerprint_of, load_clip
from robustclip.models.towers import encode_image


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model("ViT-B-32", precision="fp32", load_weights=False)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def test_the_tiny_backbone_is_the_same_in_every_process(tiny: Clip) -> None:
    assert load_clip("tiny").fingerprint == tiny.fingerprint
    assert (tiny.image_size, tiny.text_layers, tiny.visual_layers) == (32, 2, 2)
    assert tiny.logit_scale.item() == pytest.approx(100)


def test_a_loaded_clip_is_frozen(tiny: Clip) -> None:
    assert not tiny.model.training
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny", "d86c2998c0bd2864c886bdc23816b17e6431b624b126729386a8490a47753602"),
        ("mini", "c7a83cd416236a6a9a9c601f5ae0f5905074c47fdf5a03c9e0105b03bf31d8ff"),
        ("mini-robust", "4780c4de866884949bf59f4a5dba850e2a6909088038fae581823e434be33035"),
    ],
)
def test_the_fingerprints_of_what_ships_do_not_change(name: str, expected: str) -> None:
    assert load_clip(name).fingerprint == expected


def test_the_fingerprint_of_a_clip_like_openais_does_not_change() -> None:
    small = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.CLIP(32, small, text, quick_gelu=True)
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(model.named_parameters())):
            parameter.copy_((torch.arange(parameter.numel()) % (index + 7)).reshape(parameter.shape) / 16)
    assert describe(model, "small", "seeded").fingerprint == (
        "581f8fcebcd14e9dc8e123a142b1b2293c4e2b9b6c4bc74d428e7e2660667346"
    )


def test_the_fingerprint_follows_weights_and_normalisation(tiny: Clip) -> None:
    assert fingerprint_of(tiny.model, tiny.mean, tiny.std) == tiny.fingerprint
    assert fingerprint_of(tiny.model, tiny.mean + 0.01, tiny.std) != tiny.fingerprint
    other = load_clip("tiny")
    other.model.logit_scale.data += 1e-3
    assert fingerprint_of(other.model, tiny.mean, tiny.std) != tiny.fingerprint


@pytest.mark.slow
def test_local_weights_load_from_safetensors_and_from_a_state_dict(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = load_clip("ViT-B-32", str(weights))
    assert not caplog.records, "nobody is told that the weights are random"
    assert (clip.image_size, clip.pretrained) == (224, "vit.safetensors")
    pickled = tmp_path / "vit.pt"
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in clip.model.state_dict().items()}},
        pickled,
    )
    assert load_clip("ViT-B-32", str(pickled)).fingerprint == clip.fingerprint


@pytest.mark.slow
def test_weights_of_another_architecture_are_refused_with_what_is_missing(weights: Path) -> None:
    with pytest.raises(UnsupportedClip, match="tensors missing"):
        load_clip("ViT-B-16", str(weights))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of Hugging Face's hub with one repository in it, `owner/small`, and no network behind it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--owner--small"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    pictures = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}
    (snapshot / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": pictures})
    )
    save_file(
        {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**config).state_dict().items()},
        snapshot / "open_clip_model.safetensors",
    )
    return snapshot


def test_a_hub_repository_says_that_it_comes_from_the_hub(hub: Path) -> None:
    clip = load_clip("hf-hub:owner/small")
    assert (clip.arch, clip.pretrained, clip.image_size) == ("hf-hub:owner/small", "hub", 32)
    torch.testing.assert_close(clip.mean, torch.tensor([0.5, 0.4, 0.3]))
    assert load_clip("hf-hub:owner/small").fingerprint == clip.fingerprint


def test_a_hub_repository_without_weights_is_refused_instead_of_served_with_random_ones(hub: Path) -> None:
    (hub / "open_clip_model.safetensors").unlink()
    with pytest.raises(UnsupportedClip, match="could not be loaded"):
        load_clip("hf-hub:owner/small")


@pytest.mark.parametrize(
    ("arch", "pretrained", "field"),
    [
        ("ViT-Z-9", None, "clip.arch"),
        ("ViT-B-32", None, "clip.pretrained"),
        ("ViT-B-32", "no-such-tag", "clip.pretrained"),
        ("tiny", "openai", "clip.pretrained"),
    ],
)
def test_names_that_do_not_exist_say_what_does(arch: str, pretrained: str | None, field: str) -> None:
    with pytest.raises(UnsupportedClip) as refusal:
        load_clip(arch, pretrained)
    assert refusal.value.field == field
    assert refusal.value.help


def test_equal_weights_that_compute_differently_have_different_fingerprints() -> None:
    small = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
    models = [
        open_clip.CLIP(32, small | {"head_width": 64}, text),
        open_clip.CLIP(32, small | {"head_width": 64}, text, quick_gelu=True),
        open_clip.CLIP(32, small | {"head_width": 32}, text),
    ]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    assert len({describe(model, "small", "seeded").fingerprint for model in models}) == 3


def test_an_embedded_stem_computes_its_norms_in_its_convolutions_unless_it_is_to_learn() -> None:
    served, trainable = load_clip("mini-robust"), load_clip("mini-robust", as_trained=True)
    norms = [
        sum(isinstance(module, nn.BatchNorm2d) for module in clip.model.visual.modules())
        for clip in (served, trainable)
    ]
    assert norms[0] == 0 < norms[1]
    assert served.fingerprint == trainable.fingerprint
    pixels = torch.rand(
        2, 3, served.image_size, served.image_size, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(
        encode_image(served, pixels, None), encode_image(trainable, pixels, None), atol=1e-4, rtol=1e-4
    )
