"""The prompt sets that an evaluation is asked about, by name or in words."""

from pathlib import Path
from typing import NamedTuple

from prompts_store.store import SHIPPED, PromptStore
from robustclip.errors import InvalidInput, UnknownPromptSet
from robustclip.models.clip import Clip
from robustclip.models.labels import meanings
from robustclip.models.prompts import Prompts
from training.data.sources import Source
from training.learning.tuning.selection import check_carried
from training.measuring.evaluation.question import DATA_TEMPLATE, EVERY_SEED, TEMPLATES_APART


class AskedSet(NamedTuple):
    """A prompt set by its pinned name, or the words that were asked for.

    learned_on  the labels it was trained on; none if it learned nothing
    selection   the digest of the record by which its settings were chosen, if they were
    """

    name: str
    prompts: Prompts
    learned_on: tuple[str, ...] = ()
    selection: str | None = None


def load_prompts(text: str, clip: Clip, labels: tuple[str, ...], store: Path) -> AskedSet:
    """What a prompt set option means: templates with `{}`, | between them, or a set of the store, or a
    shipped one.

    A set whose settings were chosen on other pictures than held-out ones is refused
    (`selection.check_carried`).
    """
    if "{" in text or "}" in text:
        return AskedSet(text, Prompts(templates=tuple(text.split(TEMPLATES_APART))))
    stores = [PromptStore(root, read_only=True) for root in (store, SHIPPED)]
    for place in stores:
        try:
            found = place.load(text, clip)
            break
        except UnknownPromptSet:
            continue
    else:
        known = sorted({name for place in stores for name in place.names(clip.fingerprint)})
        raise UnknownPromptSet(
            f"there is no prompt set {text!r} for {clip.arch}.",
            field="--prompt-set",
            help=f"Known: {', '.join(known)}.",
        )
    known = found.manifest.labels
    if found.manifest.class_specific and meanings(labels, known) != [[row] for row in range(len(known))]:
        raise InvalidInput(
            f"{found.ref} has a context for each of its own labels, which are not those of the data.",
            field="--prompt-set",
        )
    carried = check_carried(found.manifest.objective, ref=str(found.ref))
    return AskedSet(
        str(found.ref), found.prompts, found.manifest.labels, None if carried is None else carried.digest
    )


def of_seed(asked: str, source: Source, seed: int) -> str:
    """The one prompt set that is meant on a data set, for a seed."""
    if asked == DATA_TEMPLATE:
        return TEMPLATES_APART.join(source.templates)
    return asked if "{" in asked else asked.replace(EVERY_SEED, str(seed))
