"""How much a request may say, checked before any of its items is.

Validation looks at every item of a list, and builds an error for each: a few hundred kilobytes of wrong items
would hold the event loop for seconds. Here lengths alone are looked at, and the first that is too large ends
the request.
"""

from collections.abc import Mapping
from typing import Any, cast

from robustclip.defenses import MAX_LINKS
from service.config import LimitSettings
from service.problems import invalid

MAX_FIELDS, MAX_ITEMS = 64, 64
MAX_NODES, MAX_CHARACTERS = 4096, 16_384  # of all values inside a field but for labels and pictures
_RAW = 8  # a label is measured after invisible characters are left out: so much longer may be what is sent


def refuse_large(data: Mapping[str, Any], limits: LimitSettings) -> None:
    """Raises Problem for the first field that says too much. Takes a bounded number of steps."""
    if len(data) > MAX_FIELDS:
        raise invalid("#", f"expected at most {MAX_FIELDS} fields, found {len(data)}.")
    counts = {
        "images": (limits.images, "images", "too-many-images"),
        "labels": (limits.labels, "labels", "too-many-labels"),
        "defense": (MAX_LINKS, "defenses", "validation"),
    }
    for name, value in data.items():
        pointer = f"#/{name:.80}"
        most, words, code = counts.get(name, (MAX_ITEMS, "items", "validation"))
        if isinstance(value, list | tuple | Mapping) and len(cast(Any, value)) > most:
            raise invalid(
                pointer, f"expected at most {most} {words}, found {len(cast(Any, value))}.", code=code
            )
        if name == "labels":
            _refuse_long_labels(value, limits)
        elif name not in ("image", "images"):
            _refuse_deep(pointer, value)


def _refuse_long_labels(labels: object, limits: LimitSettings) -> None:
    for index, label in enumerate(cast("list[object]", labels) if isinstance(labels, list | tuple) else ()):
        if isinstance(label, str) and len(label) > _RAW * limits.label_characters:
            raise invalid(
                f"#/labels/{index}",
                f"expected at most {limits.label_characters} characters, found {len(label)}.",
            )
        _refuse_deep(f"#/labels/{index}", label)


def _refuse_deep(pointer: str, value: object) -> None:
    """Count values, and characters of keys and texts, from the outside in."""
    waiting, nodes, characters = [value], 0, 0
    while waiting:
        node = waiting.pop()
        nodes += 1
        if isinstance(node, str):
            characters += len(node)
        elif isinstance(node, list | tuple | Mapping):
            nodes += len(cast(Any, node))
            if nodes <= MAX_NODES:
                waiting += (
                    [*cast(Any, node).values(), *cast(Any, node)] if isinstance(node, Mapping) else node
                )
        if nodes > MAX_NODES:
            raise invalid(pointer, f"expected at most {MAX_NODES} values, found more.")
        if characters > MAX_CHARACTERS:
            raise invalid(pointer, f"expected at most {MAX_CHARACTERS} characters, found more.")
