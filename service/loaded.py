"""A prompt set in memory, as requests use it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch

from prompts_store.manifest import PromptSet, Ref
from robustclip.digests import tensor_digest
from robustclip.models.prompts import Prompts


@dataclass(frozen=True, eq=False)
class LoadedSet:
    """A verified prompt set with its tensors on the device.

    `lane` tells image towers apart: sets without visual prompts share one. `generation` is the snapshot that
    brought it in.
    """

    prompt_set: PromptSet
    lane: str
    generation: int
    since: datetime

    @classmethod
    def of(cls, prompt_set: PromptSet, device: torch.device, generation: int) -> "LoadedSet":
        visual = prompt_set.prompts.visual
        lane = "" if visual is None else tensor_digest(visual)
        on_device = replace(prompt_set, prompts=prompt_set.prompts.to(device))
        return cls(on_device, lane, generation, datetime.now(UTC))

    @property
    def prompts(self) -> Prompts:
        return self.prompt_set.prompts

    @property
    def ref(self) -> Ref:
        return self.prompt_set.ref

    @property
    def etag(self) -> str:
        return f'"{self.ref.version}-{self.generation}"'
