"""Embedded CLIPs: a JSON with open_clip's configuration, and fp16 safetensors beside it.

With `"stem": "efficientnet_lite0"` the patch convolution is a `ConvStem` of as many layers as the patch size
says, with `"efficientnet_lite0_whole"` of all of them. With `"text_of": "mini"` the file
holds an image tower only; everything else is that backbone's. All else is as in open_clip.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustclip.backbones.stem import WHOLE, ConvStem
from robustclip.backbones.tiny import TINY_CONFIG, tiny_weights

_TOKENS = "token_embedding.weight"
_TOKEN_SCALES = "token_embedding.scales"
_IMAGE_TOWER = "visual."


def embedded_names() -> list[str]:
    """The names that `load_clip(arch)` accepts: shipped weights, and `tiny`, which is drawn from a seed."""
    names = (path.name for path in files(__name__).iterdir())
    return [*sorted(name.removesuffix(".json") for name in names if name.endswith(".json")), "tiny"]


def load_embedded(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A backbone in float32, and its configuration.

    name: an embedded name, or the path of a JSON with safetensors of the same stem beside it.
    """
    if name == "tiny":
        model = build_backbone(TINY_CONFIG)
        model.load_state_dict(tiny_weights(model))
        return model, TINY_CONFIG
    config = read_config(name)
    model = build_backbone(config)
    weights = read_weights(_json(name).with_suffix(".safetensors"))
    if "text_of" in config:
        sister, _ = load_embedded(config["text_of"])
        weights |= {
            key: tensor for key, tensor in sister.state_dict().items() if not key.startswith(_IMAGE_TOWER)
        }
    model.load_state_dict(weights)
    return model, config


def read_config(name: str) -> dict[str, Any]:
    """The JSON of a backbone."""
    return TINY_CONFIG if name == "tiny" else json.loads(_json(name).read_text())


def terms_of(name: str) -> str | None:
    """The terms on which the weights of an embedded backbone, or of a backbone's JSON, may be used.

    None for other names: then the terms of whoever published them hold.
    """
    return read_config(name).get("terms") if name in embedded_names() or name.endswith(".json") else None


def _json(name: str) -> Path:
    return Path(name) if name.endswith(".json") else Path(str(files(__name__))) / f"{name}.json"


def build_backbone(config: dict[str, Any]) -> nn.Module:
    """The architecture of a backbone JSON with open_clip's random initialisation."""
    clip = open_clip.CLIP(
        config["embed_dim"],
        config["vision_cfg"],
        config["text_cfg"],
        init_logit_bias=config.get("init_logit_bias"),
    )
    if config.get("stem"):
        width, stride = config["vision_cfg"]["width"], config["vision_cfg"]["patch_size"]
        whole = config["stem"] == WHOLE  # its stride is 32; the patch size says how many tokens there are
        cast(Any, clip.visual).conv1 = ConvStem(width, whole=True) if whole else ConvStem(width, stride)
    return clip


def write_weights(model: nn.Module, path: Path, *, image_tower_only: bool = False) -> None:
    """fp16 safetensors; the token table, half of all bytes, as int8 with one scale a row.

    `image_tower_only`: for a JSON with `text_of`.
    """
    tensors = {
        name: tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if name.startswith(_IMAGE_TOWER) or not image_tower_only
    }
    packed: dict[str, Tensor] = {}
    if _TOKENS in tensors:
        table = tensors.pop(_TOKENS).float()
        scales = table.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / 127
        packed = {_TOKENS: (table / scales).round().to(torch.int8), _TOKEN_SCALES: scales.half()}
    packed |= {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in tensors.items()
    }
    path.write_bytes(save(packed))  # `save_file` ignores the umask: only the owner could read its files


def read_weights(path: Path) -> dict[str, Tensor]:
    """A float32 state dict from what `write_weights` wrote."""
    packed = load_file(path)
    if _TOKENS in packed:
        packed[_TOKENS] = packed[_TOKENS].float() * packed.pop(_TOKEN_SCALES).float()
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in packed.items()}
