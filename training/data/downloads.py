"""Data sets of torchvision by name: `torchvision:CIFAR10` in var/data, or `torchvision:CIFAR10@FOLDER`.

Missing files are downloaded if torchvision can. Names of classes are torchvision's. Where those are codes or
names of folders, they are clip_benchmark's (class_names/*.txt, in torchvision's order).
"""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL.Image import Image

from robustclip.errors import DataRefused
from training.data.labelled import ALL, LabelledImages, labelled

PREFIX = "torchvision:"
DEFAULT_FOLDER = Path("var/data")
_NAMES = Path(__file__).parent / "class_names"
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_WITH_VAL = {**_TRAIN_TEST, "val": {"split": "val"}}
_WHOLE: dict[str, dict[str, Any]] = {ALL: {}}
_FLAG = {"train": {"train": True}, "test": {"train": False}}

SPLITS: dict[str, dict[str, dict[str, Any]]] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": {**_TRAIN_TEST, "val": {"split": "valid"}},
    "DTD": _WITH_VAL,
    "EuroSAT": _WHOLE,
    "FGVCAircraft": {**_WITH_VAL, "trainval": {"split": "trainval"}},
    "Flowers102": _WITH_VAL,
    "Food101": _TRAIN_TEST,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "PCAM": _WITH_VAL,
    "STL10": _TRAIN_TEST,
    "SUN397": _WHOLE,
    "StanfordCars": _TRAIN_TEST,
}


class NamedDataSet(NamedTuple):
    """A data set of torchvision and the folder that holds its files."""

    name: str
    folder: Path


def named_data(text: str | Path) -> NamedDataSet | None:
    """The data set of an argument that begins with `torchvision:`. DataRefused for a name that is not in
    SPLITS.
    """
    written = str(text)
    if not written.startswith(PREFIX):
        return None
    name, _, folder = written.removeprefix(PREFIX).partition("@")
    if name not in SPLITS:
        raise DataRefused(
            f"torchvision's {name!r} is not known here.", field="--data", help=f"Known: {', '.join(SPLITS)}."
        )
    return NamedDataSet(name, Path(folder) if folder else DEFAULT_FOLDER)


def download(named: NamedDataSet, split: str, *, allowed: bool = True) -> LabelledImages:
    """Open one split; a missing one is downloaded if that is `allowed`.

    DataRefused for an unknown split, and for files that are missing and can't be downloaded.
    """
    splits = SPLITS[named.name]
    if split not in splits:
        raise DataRefused(
            f"no split {split!r}.", field=f"{PREFIX}{named.name}", help=f"It has {', '.join(splits)}."
        )
    pictures = _open(named, splits[split], allowed)
    targets = _targets(pictures)
    classes = _class_names(named.name, pictures)

    def read(index: int) -> bytes:
        buffer = io.BytesIO()
        cast(Image, pictures[index][0]).convert("RGB").save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    names = tuple(f"{named.name} {split} {index}" for index in range(len(targets)))
    return labelled(named.folder / named.name, split, classes, targets, names, read)


def _open(named: NamedDataSet, options: dict[str, Any], allowed: bool) -> Any:
    from torchvision import datasets  # slow to import, and few ask for it

    try:
        with warnings.catch_warnings(action="ignore"):  # of what numpy and torchvision will do one day
            return getattr(datasets, named.name)(str(named.folder), **options, download=allowed)
    # each data set of torchvision fails in another way
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise DataRefused(
            f"torchvision can't open {named.name} in {named.folder}: {str(error).splitlines()[0]:.200}",
            field="--data",
            help="Check the network, or put its files there by hand, or give a folder of pictures instead.",
        ) from error


def _targets(pictures: Any) -> list[int]:
    """Label numbers; pictures are decoded only where torchvision has no list of labels."""
    for name in ("targets", "labels", "_labels", "y"):
        labels = getattr(pictures, name, None)
        if labels is not None and len(labels) == len(pictures):
            return [int(label) for label in labels]
    return [int(pictures[index][1]) for index in range(len(pictures))]


def _class_names(name: str, pictures: Any) -> list[str]:
    path = _NAMES / f"{name}.txt"
    if path.is_file():
        return path.read_text(encoding="utf-8").splitlines()
    classes: Sequence[str] = getattr(pictures, "classes", None) or pictures.categories
    if name == "Caltech256":  # 001.ak47, 002.american-flag, 251.airplanes-101
        return [re.sub(r"^\d+\.|-101$", "", written).replace("-", " ") for written in classes]
    return [written.replace("/", " ") for written in classes]  # SUN397: apartment_building/outdoor
