"""Choose some classes of a data set and perhaps rename them, for `train` and `evaluate`.

The file names one class a line, `name` or `name = other name`; a line that begins with # is a comment. `base`
and `new` are the first and the second half of a data set's labels in their order, as CoOp splits them.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from timm.data.imagenet_info import ImageNetInfo

from robustclip.errors import DataRefused
from robustclip.models.labels import meanings
from robustclip.models.vocabulary import imagenet_names
from training.data.labelled import LabelledImages, read_lines

Among: TypeAlias = Literal["all", "these"]
BASE, NEW = "base", "new"


def choose_classes(data: LabelledImages, path: Path, among: Among) -> LabelledImages:
    """Only the pictures of the classes that `path` names (or `base`, `new`), to be told from `all` labels or
    `these`.

    DataRefused for a class that the data set lacks, one that is named twice, and two with one new name.
    """
    chosen_names = _half(data.labels, str(path)) if str(path) in (BASE, NEW) else read_classes(path)
    names: dict[str, str] = {}
    for (name, other), meant in zip(
        chosen_names.items(), meanings(tuple(chosen_names), data.labels), strict=True
    ):
        if not meant:
            raise DataRefused(
                f"{path.name} names the class {name!r}, which {data.folder.name} does not have.",
                field="--classes",
            )
        label = data.labels[meant[0]]
        if label in names:
            raise DataRefused(f"{path.name} names the class {label!r} twice.", field="--classes")
        names[label] = label if other == name else other
    labels = tuple(names.get(label, label) for label in data.labels if among == "all" or label in names)
    if len({label.lower() for label in labels}) < len(labels):
        twice = next(label for label in labels if sum(label.lower() == other.lower() for other in labels) > 1)
        raise DataRefused(f"{path.name} gives two classes the name {twice!r}.", field="--classes")
    if len(labels) < 2:
        raise DataRefused(
            f"expected at least 2 classes, {path.name} names {len(labels)}.",
            field="--classes",
            help="Name more; evaluate --among all can measure one.",
        )
    position = {
        index: labels.index(names[label]) for index, label in enumerate(data.labels) if label in names
    }
    rows = torch.tensor([row for row, target in enumerate(data.targets.tolist()) if target in position])
    if not len(rows):
        raise DataRefused(
            f"the split {data.split!r} has no picture of the classes in {path.name}.", field="--classes"
        )
    chosen = data.subset(rows, data.split)
    return replace(
        chosen, labels=labels, targets=torch.tensor([position[target] for target in chosen.targets.tolist()])
    )


def _half(labels: tuple[str, ...], which: str) -> dict[str, str]:
    middle = math.ceil(len(labels) / 2)
    return {label: label for label in (labels[:middle] if which == BASE else labels[middle:])}


def read_classes(path: Path) -> dict[str, str]:
    """Class -> its new name. DataRefused for an unreadable file, no class, and a class named twice."""
    names: dict[str, str] = {}
    for line in (line.strip() for line in read_lines(path, field="--classes")):
        if not line or line.startswith("#"):
            continue
        name, _, other = (part.strip() for part in line.partition(" = "))
        if name in names:
            raise DataRefused(f"{path.name} names the class {name!r} twice.", field="--classes")
        names[name] = other or name
    if not names:
        raise DataRefused(
            f"{path.name} names no class.", field="--classes", help="Write one class name a line."
        )
    return names


def imagenet_words(labels: tuple[str, ...]) -> tuple[str, ...]:
    """ImageNet's names if all labels are its WordNet numbers; else the labels themselves."""
    info = ImageNetInfo()
    numbers = {info.index_to_label_name(index): name for index, name in enumerate(imagenet_names())}
    return tuple(numbers[label] for label in labels) if all(label in numbers for label in labels) else labels
