"""A prompt set in memory, as requests use it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch

from prompts_store.manifest import PromptSet, Ref
from robustclip.digests import tensor_digest
from robustclip.errors import InvalidInput
from robustclip.models.prompts import Prompts


@dataclass(frozen=True, eq=False)
class LoadedSet:
    """A verified prompt set with its tensors on the device.

    `lane` tells image towers apart: sets without visual prompts share one. `generation` is the snapshot that
    brought it in.
    """

    prompt_set: PromptSet
    prompts: Prompts
    lane: str
    generation: int
    since: datetime

    @classmethod
    def of(cls, prompt_set: PromptSet, device: torch.device, generation: int) -> "LoadedSet":
        prompts = prompt_set.prompts.to(device)
        visual = prompt_set.prompts.visual
        lane = "" if visual is None else tensor_digest(visual)
        return cls(prompt_set, prompts, lane, generation, datetime.now(UTC))

    @property
    def ref(self) -> Ref:
        return self.prompt_set.ref

    @property
    def etag(self) -> str:
        return f'"{self.ref.version}-{self.generation}"'

    def prompts_for(self, labels: tuple[str, ...]) -> Prompts:
        """The prompts in the order of `labels`: a set with one context a label knows only the labels that it
        was trained on.
        """
        if not self.prompts.class_specific or self.prompts.text is None:
            return self.prompts
        known = {label: row for row, label in enumerate(self.prompt_set.manifest.labels)}
        for index, label in enumerate(labels):
            if label not in known:
                raise InvalidInput(
                    f"{str(self.ref)!r} has no context for {label!r}.",
                    field=f"labels/{index}",
                    help="Use its training labels, or another set.",
                )
        return replace(self.prompts, text=self.prompts.text[[known[label] for label in labels]])
