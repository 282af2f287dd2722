"""The prompt sets without training: words around the label.

`python -m prompts_store.handcrafted` writes them into the package.
"""

from datetime import UTC, datetime

from prompts_store.manifest import PromptManifest, PromptSet
from prompts_store.store import SHIPPED, PromptStore
from robustclip.models import HANDCRAFTED_TEMPLATE, Prompts

# The best seven together, according to OpenAI's notebook "Prompt Engineering for ImageNet" (2021).
ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
# Fixed, like the code version: writing them again gives the same bytes.
_CREATED_AT = datetime(2026, 11, 22, tzinfo=UTC)


def handcrafted_sets() -> tuple[PromptSet, ...]:
    """`handcrafted`, the template that every method is compared with, and `handcrafted-ensemble`."""
    return (
        _template_set(
            "handcrafted",
            (HANDCRAFTED_TEMPLATE,),
            note="The plain template; a baseline without any training.",
        ),
        _template_set(
            "handcrafted-ensemble",
            ENSEMBLE,
            note="Seven templates, their text features averaged; without any training.",
        ),
    )


def _template_set(name: str, templates: tuple[str, ...], *, note: str) -> PromptSet:
    manifest = PromptManifest(
        name=name,
        objective={"kind": "handcrafted"},
        templates=templates,
        code_version="0.1.0",
        created_at=_CREATED_AT,
        note=note,
    )
    return PromptSet(manifest, Prompts(templates=templates))


if __name__ == "__main__":
    for handcrafted in handcrafted_sets():
        print(PromptStore(SHIPPED).publish(handcrafted, activate=True))
    (SHIPPED / ".lock").unlink()
