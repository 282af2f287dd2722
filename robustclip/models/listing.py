"""Every pair of architecture and tag that open_clip lists, with what it can do here or why it can't.

Nothing is typed by hand: each architecture is built on the meta device and judged as a loaded one is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import open_clip
from huggingface_hub import try_to_load_from_cache
from torch import nn

from robustclip.backbones import load_embedded
from robustclip.models.architectures import build, configuration_of, is_repository, missing_extra, skeleton
from robustclip.models.capabilities import Capabilities, capabilities_of, image_size
from robustclip.models.costs import Memory, Pace, memory_of, pace_of

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of a repository of open_clip
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Architecture:
    """An embedded CLIP or an architecture of open_clip.

    parameters      of both towers; None if the text tower's configuration stands on the hub
    image_size      the side of its square of pixels; None if that is not fixed
    context_length  in tokens; None if the text tower's configuration stands on the hub
    memory          None where the modules can't be built here
    tags            its published weights, by open_clip's names
    """

    name: str
    capabilities: Capabilities
    parameters: int | None
    image_size: int | None
    context_length: int | None
    memory: Memory | None
    tags: tuple[str, ...]


def architecture_names() -> list[str]:
    """The architectures with published weights, in open_clip's order."""
    return [*dict.fromkeys(arch for arch, _ in open_clip.list_pretrained())]


def architectures() -> Iterator[Architecture]:
    """Every one of `architecture_names`; half a second each."""
    return map(architecture, architecture_names())


def architecture(name: str) -> Architecture:
    """One architecture. UnsupportedClip for an unknown name."""
    config = configuration_of(name)
    tags = tuple(open_clip.list_pretrained_tags_by_model(name))
    hub_text = "hf_model_name" in config["text_cfg"]
    missing = missing_extra(config)
    length = None if hub_text else int(config["text_cfg"].get("context_length", 77))
    if missing and hub_text:
        return Architecture(name, Capabilities(missing, missing, missing), None, None, length, None, tags)
    model = skeleton(config)
    capabilities = Capabilities(missing, missing, missing) if missing else capabilities_of(model)
    parameters = None if hub_text else sum(parameter.numel() for parameter in model.parameters())
    memory = None if capabilities.words else memory_of(model)
    return Architecture(name, capabilities, parameters, image_size(model), length, memory, tags)


def embedded(name: str) -> Architecture:
    """A CLIP that ships with this package."""
    model, config = load_embedded(name)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    length = int(config["text_cfg"]["context_length"])
    return Architecture(
        name, capabilities_of(model), parameters, image_size(model), length, memory_of(model), ()
    )


def memory_before_loading(arch: str) -> Memory | None:
    """What an architecture or repository of open_clip will take; None if its modules tell nothing, and for
    names that can't be loaded anyway.
    """
    if not is_repository(arch) and arch not in open_clip.list_models():
        return None
    config = configuration_of(arch)
    if "hf_model_name" in config["text_cfg"] or missing_extra(config):
        return None
    model = skeleton(config)
    return None if capabilities_of(model).words else memory_of(model)


def here(found: Architecture) -> list[str]:
    """The tags whose weights are on this machine, in the caches that open_clip uses."""
    return [tag for tag in found.tags if _is_here(found.name, tag)] or ([] if found.tags else [EMBEDDED])


def _is_here(arch: str, tag: str) -> bool:
    published = cast(dict[str, Any], open_clip.get_pretrained_cfg(arch, tag))
    repository, _, file = published.get("hf_hub", "").rpartition("/")
    names = (file,) if file else _FILES
    if repository and any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return True
    url = published.get("url", "")
    return bool(url) and (Path("~/.cache/clip").expanduser() / Path(url).name).is_file()


def measured(found: Architecture) -> Pace | None:
    """The pace of an architecture here; None if its modules can't be built. Random weights are as fast."""
    if found.capabilities.words:
        return None
    if not found.tags:
        return pace_of(load_embedded(found.name)[0])
    return pace_of(_image_tower(found.name))


def _image_tower(name: str) -> nn.Module:
    """An architecture with a text tower of one block: only the image tower is timed."""
    config = configuration_of(name)
    text = {"layers": 1, "context_length": 8, "vocab_size": 8, "width": 64, "heads": 1}
    return build(config | {"text_cfg": text})


def pairs() -> Iterator[tuple[str, str, Capabilities]]:
    """(architecture, tag, capabilities) of every pair of `open_clip.list_pretrained()`."""
    known: dict[str, Capabilities] = {}
    for arch, tag in open_clip.list_pretrained():
        if arch not in known:
            known[arch] = architecture(arch).capabilities
        yield arch, tag, known[arch]
