"""The prompt sets that come with the package, and sets in files, in one call."""

from pathlib import Path

from prompts_store.codec import MAX_BYTES, decode
from prompts_store.files import read_bounded
from prompts_store.manifest import PromptSet
from prompts_store.store import SHIPPED, PromptStore
from robustclip.models.clip import Clip


def load_prompts(source: str | Path, clip: Clip) -> PromptSet:
    """A shipped set by NAME or NAME@VERSION, or the set in a .safetensors file, checked for this CLIP.

    Raises as `PromptStore.load`; OSError for a file that can't be read.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        return decode(read_bounded(path, MAX_BYTES), clip=clip)
    return PromptStore(SHIPPED, read_only=True).load(str(source), clip)
