"""open_clip's architectures: their configuration, their modules, and how pictures become their pixels."""

import importlib
import importlib.util
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.hf_configs import arch_dict
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn

from robustclip.errors import FeatureNotInstalled, UnsupportedClip
from robustclip.models.capabilities import image_size
from robustclip.models.tokens import ClipTokenizer, HubTokenizer, Tokenizer
from robustclip.preprocessing import Preprocessing

HUB, FOLDER = "hf-hub:", "local-dir:"  # beginnings of names that open_clip knows
Configuration = dict[str, Any]  # open_clip's model_cfg
_CONFIGURATION = "open_clip_config.json"


def is_repository(arch: str) -> bool:
    """Whether a name stands for a model with its configuration: on the hub or in a folder."""
    return arch.startswith((HUB, FOLDER))


def folder_of(arch: str) -> Path | None:
    """The folder of `local-dir:PATH`, else None."""
    return Path(arch.removeprefix(FOLDER)) if arch.startswith(FOLDER) else None


def configuration_of(arch: str) -> Configuration:
    """open_clip's configuration of an architecture or repository. UnsupportedClip if there is none."""
    folder = folder_of(arch)
    if folder is not None and not (folder / _CONFIGURATION).is_file():
        raise UnsupportedClip(
            f"{folder} holds no {_CONFIGURATION}.",
            field="clip.arch",
            help="Give a folder with open_clip's configuration, the weights and, if it needs one, the "
            "tokenizer.",
        )
    try:
        found = cast(Configuration, open_clip.get_model_config(arch))
        text, vision = found["text_cfg"], found["vision_cfg"]
        if not isinstance(text, dict) or not isinstance(vision, dict):
            raise ValueError("text_cfg and vision_cfg must be objects")
    except Exception as error:  # of the hub's client, of JSON, of a file without these keys
        raise UnsupportedClip(
            f"the configuration of {arch} can't be read: {error!s:.300}",
            field="clip.arch",
            help="Check the name, the network and open_clip_config.json, or use local-dir:PATH.",
        ) from error
    if folder is not None and "hf_model_name" in text and (folder / text["hf_model_name"]).is_dir():
        text["hf_model_name"] = str(folder / text["hf_model_name"])  # a text tower's own folder inside it
    return found


def missing_extra(config: Configuration) -> str:
    """Why a configuration can't be served without the transformers package; empty if it can or it is here."""
    text = config["text_cfg"]
    keys = (("tokenizer", "hf_tokenizer_name"), ("text tower", "hf_model_name"))
    parts = [name for name, key in keys if text.get(key)]
    if not parts or importlib.util.find_spec("transformers") is not None:
        return ""
    return f"the transformers package is needed for its {' and '.join(parts)}: pip install 'robustclip[hf]'."


def build(config: Configuration, *, quick_gelu: bool = False) -> nn.Module:
    """The modules of a configuration with open_clip's random initialisation and no download of weights."""
    config = deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    hub_text = "hf_model_name" in text
    if hub_text:
        text["hf_model_pretrained"] = False
    if quick_gelu:
        config["quick_gelu"] = True
    if not (config.pop("custom_text", False) or hub_text):
        return open_clip.CLIP(**config)
    return (open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP)(**config)


def skeleton(config: Configuration) -> nn.Module:
    """The same modules without memory for weights (meta device), for a look at what they compute.

    A text tower of the transformers package, whose configuration stands on the hub, is represented by a
    default one of that package: all of them have the same capabilities.
    """
    config = deepcopy(config)
    hub_text = config["text_cfg"] if "hf_model_name" in config["text_cfg"] else None
    if hub_text is not None:
        config |= {"custom_text": True, "text_cfg": {"layers": 1, "context_length": 8, "vocab_size": 8}}
    with torch.device("meta"):
        model = build(config)
        if hub_text is not None:
            cast(Any, model).text = _stand_in(hub_text, config["embed_dim"])
    return model


def _stand_in(text: Mapping[str, Any], width: int) -> nn.Module:
    from open_clip.hf_model import HFTextEncoder

    transformers: Any = importlib.import_module("transformers")  # the extra [hf]
    return HFTextEncoder(
        text["hf_model_name"],
        width,
        config=transformers.AutoConfig.for_model(next(iter(arch_dict))),
        pooler_type=text.get("hf_pooler_type", "mean_pooler"),
        proj_type=text.get("hf_proj_type", "mlp"),
    )


def tokenizer_of(arch: str, config: Configuration) -> Tokenizer:
    """The tokenizer of an architecture or repository, as open_clip chooses it.

    Raises UnsupportedClip if it can't be had, and FeatureNotInstalled without the transformers package.
    """
    text = config["text_cfg"]
    if not text.get("hf_tokenizer_name") and not text.get("hf_model_name"):
        return ClipTokenizer(text.get("context_length", 77), **(text.get("tokenizer_kwargs") or {}))
    if reason := missing_extra(config):
        raise FeatureNotInstalled(f"{arch}: {reason}", field="clip.arch")
    try:
        return HubTokenizer(cast(HFTokenizer, open_clip.get_tokenizer(arch)))
    except Exception as error:  # transformers raises errors of many kinds
        raise UnsupportedClip(
            f"the tokenizer of {arch} could not be loaded: {error!s:.300}",
            field="clip.arch",
            help="Without a network use local-dir:PATH, a folder with open_clip_config.json, the weights and "
            "the tokenizer.",
        ) from error


def pictures_of_tag(arch: str, tag: str) -> dict[str, Any]:
    """open_clip's preprocess configuration of a tag."""
    return merge_preprocess_dict(PreprocessCfg(), open_clip.get_pretrained_cfg(arch, tag))


def pictures_of_file(arch: str, name: str, tag: str | None) -> dict[str, Any]:
    """The preprocess configuration of local weights: their tag's, or the one that all tags agree on.

    An architecture without tags gets open_clip's default for it. UnsupportedClip if the tags differ.
    """
    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(arch)
    ways = {json.dumps(pictures_of_tag(arch, known), sort_keys=True): known for known in reversed(tags)}
    if len(ways) > 1:
        examples = " or ".join(f"{known}={name}" for known in reversed(ways.values()))
        raise UnsupportedClip(
            f"the weights that are published for {arch} see pictures in {len(ways)} different ways, and "
            f"{name} does not say which is its own.",
            field="clip.pretrained",
            help=f"Name the tag that it was trained like: {examples}.",
        )
    return json.loads(next(iter(ways))) if ways else asdict(PreprocessCfg())


def wants_quick_gelu(arch: str, tag: str | None) -> bool:
    """Whether weights of this tag, or of every tag of the architecture, were trained with QuickGELU."""
    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(arch)
    return bool(tags) and all(open_clip.get_pretrained_cfg(arch, known).get("quick_gelu") for known in tags)


def preprocessing_of(
    model: nn.Module, pictures: Mapping[str, Any], arch: str
) -> tuple[Preprocessing, Tensor, Tensor]:
    """(preprocessing, mean, std) of open_clip's configuration. UnsupportedClip for unknown names."""
    mode = pictures.get("resize_mode") or "shortest"
    interpolation = pictures.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash", "longest") or interpolation not in (
        "bicubic",
        "bilinear",
        "random",
    ):
        raise UnsupportedClip(
            f"{arch} resizes pictures by {mode!r} and {interpolation!r}.",
            field="clip.arch",
            help="Known are shortest, squash and longest; bicubic and bilinear.",
        )
    chosen = Preprocessing(
        image_size(model) or 0,
        mode,
        "bilinear" if interpolation == "bilinear" else "bicubic",  # open_clip's reading of `random`
        int(pictures.get("fill_color") or 0),
    )
    mean, std = (_channels(pictures.get(key), default) for key, default in _DEFAULTS.items())
    return chosen, mean, std


_DEFAULTS = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


def _channels(value: Any, default: tuple[float, ...]) -> Tensor:
    """[3] of three numbers, or of one for all channels."""
    return torch.tensor(value or default, dtype=torch.float32).expand(3).clone()
