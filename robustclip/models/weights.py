"""Weights for open_clip's architectures: from a tag, the hub or a local file. Each refusal says what to do.

Also refuses models that our towers (robustclip/models/towers.py) would compute wrongly.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, VisionTransformer
from safetensors.torch import load_file
from torch import Tensor, nn

from robustclip.errors import UnsupportedClip


def model_from_open_clip(arch: str, pretrained: str | None) -> tuple[nn.Module, Tensor, Tensor]:
    """(model, mean, std) of an open_clip tag, or of a hub repository if `pretrained` is None."""
    try:
        # Without `require_pretrained`, open_clip would use random weights if a repository can't be fetched.
        model = open_clip.create_model(arch, pretrained=pretrained, precision="fp32", require_pretrained=True)
    except (RuntimeError, ValueError, OSError) as error:
        raise UnsupportedClip(
            f"{arch} {pretrained or ''} could not be loaded: {error}",
            field="clip.arch",
            help="Check the name and the network, or give a local file.",
        ) from error
    if pretrained is not None:
        config = open_clip.get_pretrained_cfg(arch, pretrained)
        refuse_other_activation(model, arch, quick_gelu=bool(config.get("quick_gelu")))
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    return model, torch.tensor(preprocessing["mean"]), torch.tensor(preprocessing["std"])


def model_from_file(arch: str, path: Path) -> nn.Module:
    """An architecture with the weights of a local file."""
    model = _blank(arch)
    if path.suffix != ".safetensors" and is_torchscript(path):
        # OpenAI's own files are TorchScript archives, trained with QuickGELU. open_clip's plain
        # architectures use GELU and would lose several points of accuracy.
        refuse_other_activation(model, arch, quick_gelu=True)
    state = {name.removeprefix("module."): tensor.float() for name, tensor in _read_state(path).items()}
    expected = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if name in expected and expected[name].shape == tensor.shape
    }
    missing = [name for name in expected if name not in fitting]
    unexpected = state.keys() - expected.keys()
    if missing or unexpected:
        raise UnsupportedClip(
            f"{path.name} does not fit {arch}: {len(missing)} tensors missing or misshapen "
            f"({', '.join(missing[:3])}), {len(unexpected)} unexpected.",
            field="clip.pretrained",
            help="Give the architecture that these weights were trained with.",
        )
    model.load_state_dict(fitting)
    return model


def refuse_foreign_towers(model: nn.Module, arch: str) -> None:
    """UnsupportedClip for a model that our towers would compute wrongly; the message names the difference."""
    if not isinstance(model, open_clip.CLIP):
        raise _foreign_text(arch, type(model).__name__)
    clip = cast(Any, model)
    if not isinstance(clip.text_projection, nn.Parameter) or clip.text_pool_type != "argmax":
        raise UnsupportedClip(
            f"{arch} pools or projects its text differently ({clip.text_pool_type}).",
            field="clip.arch",
            help="Use ViT-B-32, say.",
        )
    towers: list[Any] = [clip.transformer]
    if isinstance(clip.visual, VisionTransformer):
        towers.append(clip.visual.transformer)
        if clip.visual.attn_pool is not None or clip.visual.pool_type != "tok":
            raise UnsupportedClip(
                f"{arch} does not read its image feature at the class token.",
                field="clip.arch",
                help="Use ViT-B-32, say.",
            )
    for block in (block for tower in towers for block in tower.resblocks):
        if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
            raise UnsupportedClip(
                f"{arch} uses {type(block).__name__}.",
                field="clip.arch",
                help="Use a CLIP with plain residual attention blocks.",
            )


def _blank(arch: str) -> nn.Module:
    """An architecture with random weights, to be filled; `open_clip.create_model` would log a warning."""
    config = cast(dict[str, Any], open_clip.get_model_config(arch))
    if config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]:
        raise _foreign_text(arch, "CoCa" if "multimodal_cfg" in config else "CustomTextCLIP")
    return open_clip.CLIP(**config)


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, a state dict without code, or OpenAI's TorchScript archive."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            # TorchScript is deprecated, but OpenAI's files are written in it.
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                state: dict[str, Any] = torch.jit.load(path, map_location="cpu").state_dict()
            state = {
                name: tensor
                for name, tensor in state.items()
                if name not in ("input_resolution", "context_length", "vocab_size")
            }
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.get("state_dict", loaded)
        if state and all(isinstance(tensor, Tensor) for tensor in state.values()):
            return state
    except Exception as error:  # each format raises errors of its own
        raise UnsupportedClip(
            f"{path.name} can't be read as weights: {error!s:.200}",
            field="clip.pretrained",
            help="Save it as safetensors.",
        ) from error
    raise UnsupportedClip(
        f"{path.name} is not a plain state dict of tensors.",
        field="clip.pretrained",
        help="Save it as safetensors.",
    )


def is_torchscript(path: Path) -> bool:
    """Whether a weights file is a TorchScript archive, the format of OpenAI's release."""
    return zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist())


def refuse_other_activation(model: nn.Module, arch: str, *, quick_gelu: bool) -> None:
    """UnsupportedClip if the weights were trained with another activation than the architecture's.

    Such weights load without an error, and the model loses accuracy.
    """
    found = any(isinstance(module, QuickGELU) for module in model.modules())
    if found != quick_gelu:
        name = f"{arch}-quickgelu" if quick_gelu else arch.removesuffix("-quickgelu")
        raise UnsupportedClip(
            f"these weights were trained with {'QuickGELU' if quick_gelu else 'GELU'}, {arch} computes "
            f"{'QuickGELU' if found else 'GELU'}.",
            field="clip.arch",
            help=f"Use {name}.",
        )


def _foreign_text(arch: str, kind: str) -> UnsupportedClip:
    return UnsupportedClip(
        f"{arch} is a {kind}, whose text tower is not open_clip's native one.",
        field="clip.arch",
        help="Use a CLIP with open_clip's own text transformer, such as ViT-B-32, ViT-L-14 or RN50.",
    )
