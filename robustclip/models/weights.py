"""Weights for open_clip's architectures: from a tag, a repository or local files.

What `pretrained` may say: TAG; FILE; TAG=FILE, for a file whose pictures and activation are those of the tag;
and each of them followed by +FILE, whose image tower then replaces the model's own.
"""

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from robustclip.errors import UnsupportedClip
from robustclip.models.architectures import (
    Configuration,
    build,
    configuration_of,
    folder_of,
    is_repository,
    pictures_of_file,
    skeleton,
    tokenizer_of,
    wants_quick_gelu,
)
from robustclip.models.capabilities import Capabilities, capabilities_of
from robustclip.models.tokens import Tokenizer

_IMAGE_TOWER = "visual."
_WRAPPERS = (
    "state_dict",
    "vision_encoder_state_dict",
    "model",
)  # of published checkpoints, around the weights


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, its tokenizer, open_clip's preprocess configuration, and the name of its weights."""

    model: nn.Module
    tokenizer: Tokenizer
    pictures: dict[str, Any]
    pretrained: str


class Choice(NamedTuple):
    """What `pretrained` names."""

    tag: str | None
    file: Path | None
    image_tower: Path | None

    @property
    def name(self) -> str:
        """The same without folders."""
        whole = "=".join(part for part in (self.tag, self.file and self.file.name) if part)
        return whole if self.image_tower is None else f"{whole}+{self.image_tower.name}"


def load_open_clip(arch: str, pretrained: str | None) -> Loaded:
    """A model of open_clip's list, of the hub or of a folder, with its weights.

    Raises UnsupportedClip as `load_clip`, and FeatureNotInstalled without a package that it needs.
    """
    config, choice = configuration_of(arch), _choice(arch, pretrained)
    tokenizer = tokenizer_of(arch, config)
    if reason := _served(arch, config).words:  # before gigabytes are fetched or read
        raise UnsupportedClip(f"{arch}: {reason}", field="clip.arch", help="Use another CLIP.")
    if choice.file is None:
        model = _model_from_open_clip(arch, choice.tag, config)
        pictures = dict(open_clip.get_model_preprocess_cfg(model))
    else:
        pictures = pictures_of_file(arch, choice.file.name, choice.tag)
        model = _model_from_file(arch, choice.file, choice.tag, config)
    if choice.image_tower is not None:
        _load_image_tower(cast(Any, model).visual, choice.image_tower, arch)
    return Loaded(model, tokenizer, pictures, choice.name)


def _served(arch: str, config: Configuration) -> Capabilities:
    """The capabilities of a configuration. UnsupportedClip if it can't be built."""
    try:
        return capabilities_of(skeleton(config))
    except Exception as error:  # of open_clip's assertions, of timm, of unknown keys
        raise UnsupportedClip(
            f"the configuration of {arch} can't be built: {error!s:.300}",
            field="clip.arch",
            help="Check its model_cfg, and whether this open_clip and timm know it.",
        ) from error


def _choice(arch: str, pretrained: str | None) -> Choice:
    """UnsupportedClip for what is neither a tag nor a file."""
    if is_repository(arch):
        label = "hub" if folder_of(arch) is None else "local-dir"
        base, _, tower = (pretrained or "").rpartition("+")
        if pretrained in (None, label):
            return Choice(label, None, None)
        if base in ("", label) and Path(tower).is_file():
            return Choice(label, None, Path(tower))
        raise UnsupportedClip(
            f"{arch} carries its own weights, found {pretrained!r}.",
            field="clip.pretrained",
            help="Leave it out, or give +FILE, a file with another image tower.",
        )
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if pretrained is None:
        raise UnsupportedClip(
            f"{arch} needs weights.",
            field="clip.pretrained",
            help="Give an open_clip tag or the path of a weights file.",
        )
    for base, tower in ((pretrained, ""), pretrained.rpartition("+")[::2]):
        tag, _, file = base.partition("=")
        image_tower = Path(tower) if tower else None
        if image_tower is not None and not image_tower.is_file():
            continue
        if Path(base).is_file():
            return Choice(None, Path(base), image_tower)
        if base in tags:
            return Choice(base, None, image_tower)
        if tag in tags and Path(file).is_file():
            return Choice(tag, Path(file), image_tower)
    raise UnsupportedClip(
        f"{pretrained!r} is neither a file nor a tag of {arch}.",
        field="clip.pretrained",
        help=f"Give TAG, FILE or TAG=FILE, and +FILE behind it for another image tower. Tags: "
        f"{', '.join(tags) or 'none'}.",
    )


def _model_from_open_clip(arch: str, tag: str | None, config: Configuration) -> nn.Module:
    """A tag of an architecture, or a repository with its weights."""
    options: dict[str, Any] = {"pretrained": tag, "force_quick_gelu": wants_quick_gelu(arch, tag)}
    if is_repository(arch):
        options = {}
        if "hf_model_name" in config["text_cfg"]:  # its folder was found, and its own weights are not wanted
            options["text_cfg"] = config["text_cfg"] | {"hf_model_pretrained": False}
    try:
        # Without `require_pretrained`, open_clip would use random weights if a repository can't be fetched.
        return open_clip.create_model(arch, precision="fp32", require_pretrained=True, **options)
    except Exception as error:  # of the hub's client, of torch, of open_clip's assertions
        raise UnsupportedClip(
            f"{arch} {tag or ''} could not be loaded: {error!s:.400}",
            field="clip.arch",
            help="Check the name and the network, or give a local file.",
        ) from error


def _model_from_file(arch: str, path: Path, tag: str | None, config: Configuration) -> nn.Module:
    """An architecture with the weights of a local file."""
    quick_gelu = bool(config.get("quick_gelu")) or wants_quick_gelu(arch, tag)
    if path.suffix != ".safetensors" and is_torchscript(path) and not quick_gelu:
        # OpenAI's own files are TorchScript archives, trained with QuickGELU. open_clip's plain
        # architectures use GELU and would lose several points of accuracy.
        raise UnsupportedClip(
            f"these weights were trained with QuickGELU, {arch} computes GELU.",
            field="clip.arch",
            help=f"Use {arch}-quickgelu, or openai={path.name}.",
        )
    model = build(config, quick_gelu=quick_gelu)
    state = _as_open_clip(model, _unwrapped(_read_state(path)))
    expected = model.state_dict()
    fitting = _fitting(state, expected)
    missing, unexpected = [name for name in expected if name not in fitting], state.keys() - expected.keys()
    if missing or unexpected:
        raise UnsupportedClip(
            f"{path.name} does not fit {arch}: {len(missing)} tensors missing or misshapen "
            f"({', '.join(missing[:3])}), {len(unexpected)} unexpected.",
            field="clip.pretrained",
            help=f"It seems to hold an image tower only: name the whole model before it, TAG+{path.name}."
            if "logit_scale" not in state
            else "Give the architecture that these weights were trained with.",
        )
    model.load_state_dict(fitting)
    return model


def _load_image_tower(visual: nn.Module, path: Path, arch: str) -> None:
    """Replace the weights of an image tower by those of a file, in place.

    Published hardened towers come as the tower's own state dict, under `visual.`, or as one entry of a
    training checkpoint (`vision_encoder_state_dict`); `module.` and `model.` before the names are cut off.
    """
    state = _unwrapped(_read_state(path))
    inside = {
        name.removeprefix(_IMAGE_TOWER): tensor
        for name, tensor in state.items()
        if name.startswith(_IMAGE_TOWER)
    }
    state, expected = inside or state, visual.state_dict()
    fitting = _fitting(state, expected)
    missing = [name for name in expected if name not in fitting and not name.endswith("num_batches_tracked")]
    unexpected = state.keys() - expected.keys()
    if missing or unexpected:
        raise UnsupportedClip(
            f"{path.name} is no image tower of {arch}: {len(missing)} tensors missing or misshapen "
            f"({', '.join(missing[:3])}), {len(unexpected)} unexpected.",
            field="clip.pretrained",
            help="Give the architecture that this tower was trained with.",
        )
    visual.load_state_dict(fitting, strict=False)


def _fitting(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that have the name and shape of an expected one."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name in expected and expected[name].shape == tensor.shape
    }


def _as_open_clip(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the present names, as open_clip reads the files of its tags."""
    state = convert_state_dict(cast(Any, model), state)
    if hasattr(model, "text"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name, None)
        if name in state and own is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(own.shape)
    return state


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """float32 tensors without the names of the wrappers that training puts around a model."""
    for prefix in ("module.", "model.", "vision_encoder.", "module."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


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
            state = torch.load(path, map_location="cpu", weights_only=True)
            for key in _WRAPPERS:
                state = cast(dict[str, Any], state.get(key, state))
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
