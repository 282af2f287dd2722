"""Prompt sets of random vectors that fit a CLIP, for tests of what is done with sets rather than of what they
know.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import torch

from prompts_store.manifest import ClipIdentity, PromptManifest, PromptSet
from robustclip.models.clip import Clip
from robustclip.models.prompts import LEARNED_TEMPLATE, Prompts


def learned_set(
    clip: Clip, *, name: str = "demo", seed: int = 0, visual: bool = False, **manifest: Any
) -> PromptSet:
    """One context of four text vectors, and two layers of three visual ones if asked; another seed is another
    version, a minute younger.
    """
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, 4, clip.text_width, generator=generator)
    image = torch.randn(2, 3, clip.visual_width or 0, generator=generator) if visual else None
    facts: dict[str, Any] = {
        "objective": {"kind": "advpt", "vectors": 4},
        "clip": ClipIdentity.of(clip),
        "labels": ("cat", "dog"),
        "seed": seed,
        "code_version": "0.1.0",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=seed),
    }
    return PromptSet(
        PromptManifest(name=name, templates=(LEARNED_TEMPLATE,), **(facts | manifest)),
        Prompts(text, image, (LEARNED_TEMPLATE,)),
    )


def template_set(*templates: str, name: str = "words") -> PromptSet:
    """A set without tensors."""
    manifest = PromptManifest(
        name=name,
        objective={"kind": "handcrafted"},
        templates=templates,
        code_version="0.1.0",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return PromptSet(manifest, Prompts(templates=templates))
