"""Every pair of architecture and tag that open_clip lists, with what it can do here or why it can't.

Nothing is typed by hand: each architecture is built on the meta device and judged as a loaded one is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import open_clip

from robustclip.models.architectures import configuration_of, missing_extra, skeleton
from robustclip.models.capabilities import Capabilities, capabilities_of, image_size


@dataclass(frozen=True)
class Architecture:
    """An architecture of open_clip.

    parameters  of both towers; None if the text tower's configuration stands on the hub
    image_size  the side of its square of pixels; None if that is not fixed
    tags        its published weights, by open_clip's names
    """

    name: str
    capabilities: Capabilities
    parameters: int | None
    image_size: int | None
    tags: tuple[str, ...]


def architectures() -> Iterator[Architecture]:
    """The architectures with published weights, in open_clip's order; half a second each."""
    for name in dict.fromkeys(arch for arch, _ in open_clip.list_pretrained()):
        yield architecture(name)


def architecture(name: str) -> Architecture:
    """One architecture. UnsupportedClip for an unknown name."""
    config = configuration_of(name)
    tags = tuple(open_clip.list_pretrained_tags_by_model(name))
    hub_text = "hf_model_name" in config["text_cfg"]
    missing = missing_extra(config)
    if missing and hub_text:
        return Architecture(name, Capabilities(missing, missing, missing), None, None, tags)
    model = skeleton(config)
    capabilities = Capabilities(missing, missing, missing) if missing else capabilities_of(model)
    parameters = None if hub_text else sum(parameter.numel() for parameter in model.parameters())
    return Architecture(name, capabilities, parameters, image_size(model), tags)


def pairs() -> Iterator[tuple[str, str, Capabilities]]:
    """(architecture, tag, capabilities) of every pair of `open_clip.list_pretrained()`."""
    known: dict[str, Capabilities] = {}
    for arch, tag in open_clip.list_pretrained():
        if arch not in known:
            known[arch] = architecture(arch).capabilities
        yield arch, tag, known[arch]
