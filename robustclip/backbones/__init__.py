"""Embedded CLIPs: a JSON with open_clip's configuration (and what differs from it), fp16 safetensors beside it, a model card.

A JSON may say `"stem": "efficientnet_lite0"`: the patch convolution is then a `ConvStem`. Nothing else differs from open_clip, and it ends here.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robustclip.backbones.stem import ConvStem
from robustclip.backbones.tiny import TINY_CONFIG, tiny_weights

_TOKENS = "token_embedding.weight"
_TOKEN_SCALES = "token_embedding.scales"


def embedded_names() -> list[str]:
    """The names that `load_clip(arch)` finds here: shipped weights, and `tiny`, which is drawn from a seed."""
    return [*sorted(path.name.removesuffix(".json") for path in files(__name__).iterdir() if path.name.endswith(".json")), "tiny"]


def load_embedded(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """An embedded CLIP in float32 with its configuration (`embed_dim, vision_cfg, text_cfg, mean, std, stem`)."""
    if name == "tiny":
        model = build(TINY_CONFIG)
        model.load_state_dict(tiny_weights(model))
        return model, TINY_CONFIG
    folder = Path(str(files(__name__)))
    config: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    model = build(config)
    model.load_state_dict(read_weights(folder / f"{name}.safetensors"))
    return model, config


def build(config: dict[str, Any]) -> nn.Module:
    """The architecture of a backbone JSON with open_clip's random initialisation."""
    clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    if config.get("stem"):
        cast(Any, clip.visual).conv1 = ConvStem(config["vision_cfg"]["width"])
    return clip


def write_weights(model: nn.Module, path: Path) -> None:
    """fp16 safetensors; the token table, half of everything, as int8 with one scale a row."""
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    table = tensors.pop(_TOKENS).float()
    scales = table.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / 127
    packed = {name: tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous() for name, tensor in tensors.items()}
    packed[_TOKENS] = (table / scales).round().to(torch.int8)
    packed[_TOKEN_SCALES] = scales.half()
    save_file(packed, path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A float32 state dict from what `write_weights` wrote."""
    packed = load_file(path)
    table = packed[_TOKENS].float() * packed.pop(_TOKEN_SCALES).float()
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in packed.items()} | {_TOKENS: table}
