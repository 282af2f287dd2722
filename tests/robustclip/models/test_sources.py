"""Where weights come from, without a network: tags, files that name their tag, image towers, folders."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_folders import CLIPA, CLIPA_PICTURES, cut_down, write_clip
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from robustclip.errors import UnsupportedClip
from robustclip.models.architectures import build
from robustclip.models.capabilities import capabilities_of
from robustclip.models.clip import Clip, describe, load_clip
from robustclip.models.text import native_text
from robustclip.preprocessing import Preprocessing

SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Weights of small models that stand in open_clip's list under the names RN50 and ViT-H-14."""
    for arch in ("RN50", "ViT-H-14"):
        config = cut_down(open_clip.get_model_config(arch) or {}, image_size=64, embed_dim=32)
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, arch, config)
        save(build(config).state_dict(), tmp_path / f"{arch}.safetensors")
    return tmp_path


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    return path


def quick(clip: Clip) -> bool:
    return any(isinstance(module, QuickGELU) for module in clip.model.modules())


def test_a_tag_whose_weights_want_quickgelu_loads_with_it(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small / "RN50.safetensors"
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(path))
    tagged, local = load_clip("RN50", "openai"), load_clip("RN50", str(path))
    assert quick(tagged)
    assert quick(local), "every tag of RN50 wants it"
    assert local.fingerprint == tagged.fingerprint
    plain = build(open_clip.get_model_config("RN50") or {})
    plain.load_state_dict(tagged.model.state_dict())
    assert describe(plain, "RN50", "plain").fingerprint != tagged.fingerprint


def test_a_file_whose_tags_differ_must_name_one(small: Path) -> None:
    path = small / "ViT-H-14.safetensors"
    with pytest.raises(UnsupportedClip, match=r"dfn5b=ViT-H-14\.safetensors") as refusal:
        load_clip("ViT-H-14", str(path))
    assert refusal.value.field == "clip.pretrained"
    squashed = load_clip("ViT-H-14", f"dfn5b={path}")
    assert (squashed.preprocessing, quick(squashed)) == (Preprocessing(64, "squash"), True)
    assert squashed.pretrained == "dfn5b=ViT-H-14.safetensors"
    cropped = load_clip("ViT-H-14", f"laion2b_s32b_b79k={path}")
    assert (cropped.preprocessing, quick(cropped)) == (Preprocessing(64), False)
    assert cropped.fingerprint != squashed.fingerprint


@pytest.mark.parametrize(
    "shape", ["bare", "visual", "module", "vision_encoder_state_dict", "state_dict of a whole model"]
)
def test_an_image_tower_alone_replaces_that_of_a_whole_model(small: Path, shape: str) -> None:
    whole = small / "ViT-H-14.safetensors"
    hardened = build(open_clip.get_model_config("ViT-H-14") or {})
    tower = hardened.state_dict() if shape.startswith("state") else hardened.visual.state_dict()
    if shape == "visual":
        tower = {f"visual.{name}": tensor for name, tensor in tower.items()}
    if shape in ("module", "vision_encoder_state_dict"):
        tower = {f"module.{name}": tensor for name, tensor in tower.items()}
    path = small / "tower.pt"
    wrapper = {"vision_encoder_state_dict": "vision_encoder_state_dict"}.get(shape, "state_dict")
    torch.save({"epoch": 3, wrapper: tower} if "state_dict" in shape else tower, path)
    clip = load_clip("ViT-H-14", f"laion2b_s32b_b79k={whole}+{path}")
    original = load_clip("ViT-H-14", f"laion2b_s32b_b79k={whole}")
    assert clip.pretrained == "laion2b_s32b_b79k=ViT-H-14.safetensors+tower.pt"
    for name, tensor in clip.model.state_dict().items():
        source = hardened.state_dict() if name.startswith("visual.") else original.model.state_dict()
        assert torch.equal(tensor, source[name]), name
    if not shape.startswith("state"):
        with pytest.raises(UnsupportedClip, match="name the whole model before it"):
            load_clip("ViT-H-14", f"dfn5b={path}")


def test_an_image_tower_of_another_architecture_is_refused(small: Path) -> None:
    other = build(open_clip.get_model_config("RN50") or {})
    path = save(other.visual.state_dict(), small / "resnet.safetensors")
    with pytest.raises(UnsupportedClip, match=r"resnet\.safetensors is no image tower of ViT-H-14"):
        load_clip("ViT-H-14", f"dfn5b={small / 'ViT-H-14.safetensors'}+{path}")


def test_a_folder_takes_another_image_tower_and_nothing_else(tmp_path: Path) -> None:
    name = write_clip(tmp_path / "clip", SMALL, {"resize_mode": "longest", "fill_color": 7, "mean": 0.5})
    clip = load_clip(name)
    assert clip.preprocessing == Preprocessing(32, "longest", "bicubic", 7)
    assert clip.mean.tolist() == [0.5, 0.5, 0.5]
    tower = save(build(SMALL).visual.state_dict(), tmp_path / "tower.safetensors")
    assert load_clip(name, f"+{tower}").fingerprint != clip.fingerprint
    with pytest.raises(UnsupportedClip, match="carries its own weights"):
        load_clip(name, "openai")


def test_a_folder_without_its_parts_is_refused_by_name(tmp_path: Path) -> None:
    name = write_clip(tmp_path, SMALL, {})
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(UnsupportedClip, match="could not be loaded"):
        load_clip(name)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 3}}))
    with pytest.raises(UnsupportedClip, match="configuration"):
        load_clip(name)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(UnsupportedClip, match=r"holds no open_clip_config\.json"):
        load_clip(name)
    with pytest.raises(UnsupportedClip, match="holds no"):
        load_clip("local-dir:no-such-folder")


def test_a_folder_with_an_unknown_way_of_resizing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedClip, match="'stretch'"):
        load_clip(write_clip(tmp_path, SMALL, {"resize_mode": "stretch"}))


def test_a_folder_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    name = write_clip(tmp_path, CLIPA, CLIPA_PICTURES, tokenizer="bert")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedClip, match="the tokenizer of"):
        load_clip(name)


def test_coca_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not even read")
    with pytest.raises(UnsupportedClip, match="CoCa") as refusal:
        load_clip("coca_ViT-B-32", str(path))
    assert refusal.value.field == "clip.arch"


def test_naflex_is_refused_by_reason(tmp_path: Path) -> None:
    vision = {"image_size": 64, "timm_model_name": "naflexvit_base_patch16_gap"}
    name = write_clip(tmp_path, SMALL, {})
    config = SMALL | {"vision_cfg": vision | {"timm_proj": "linear"}, "custom_text": True}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(UnsupportedClip, match="NaFlex"):
        load_clip(name)


@pytest.mark.parametrize(
    ("part", "change", "lacks"),
    [
        ("vision_cfg", {"pool_type": "avg"}, ()),
        ("vision_cfg", {"attentional_pool": True}, ("visual prompts",)),
        ("vision_cfg", {"qk_norm": True}, ("visual prompts",)),
        ("text_cfg", {"no_causal_mask": True, "pool_type": "last"}, ()),
        ("text_cfg", {"pool_type": "eos", "eos_id": 5, "proj_bias": True}, ()),
        ("text_cfg", {"scale_fc": True}, ("text prompts",)),
    ],
)
def test_only_the_part_that_differs_costs_a_capability(
    part: str, change: dict[str, Any], lacks: tuple[str, ...]
) -> None:
    model = build(SMALL | {part: SMALL[part] | change})
    found = capabilities_of(model)
    assert {name for name, reason in found.reasons.items() if reason} == set(lacks)
    assert (native_text(model) is None) == ("text prompts" in lacks)
    clip = describe(model, "small", "seeded")
    assert clip.capabilities == found
    plain = build(SMALL)
    if plain.state_dict().keys() == model.state_dict().keys():  # equal weights, another computation
        plain.load_state_dict(model.state_dict())
        assert clip.fingerprint != describe(plain, "small", "seeded").fingerprint
