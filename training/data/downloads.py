"""Data sets that torchvision knows by name: `torchvision:CIFAR10`, or `torchvision:CIFAR10@FOLDER` to keep
the files elsewhere than in var/data.

What is not there is downloaded, where torchvision can. Names of classes are torchvision's, but where those
are codes or names of folders (class_names/*.txt, in torchvision's order; the words are those that
clip_benchmark uses).
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
    """What a data argument means if it begins with `torchvision:`. DataRefused for a name that is not in the
    table.
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
    """Open one split, downloading it first if it is `allowed` and missing. DataRefused for a split it lacks,
    and for files that can't be had.
    """
    splits = SPLITS[named.name]
    if split not in splits:
        raise DataRefused(
            f"no split {split!r}.", field=f"{PREFIX}{named.name}", help=f"It has {', '.join(splits)}."
        )
    found = _open(named, splits[split], allowed)
    targets = _targets(found)
    classes = _class_names(named.name, found)

    def read(index: int) -> bytes:
        buffer = io.BytesIO()
        cast(Image, found[index][0]).convert("RGB").save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    names = tuple(f"{named.name} {split} {index}" for index in range(len(targets)))
    return labelled(named.folder / named.name, split, classes, targets, names, read)


def _open(named: NamedDataSet, options: dict[str, Any], allowed: bool) -> Any:
    from torchvision import datasets  # slow to import, and few ask for it

    try:
        with warnings.catch_warnings(action="ignore"):  # of what numpy and torchvision will do one day
            return getattr(datasets, named.name)(str(named.folder), **options, download=allowed)
    except (
        OSError,
        RuntimeError,
        ValueError,
        ImportError,
    ) as error:  # each data set of torchvision fails in its own way
        raise DataRefused(
            f"torchvision can't open {named.name} in {named.folder}: {str(error).splitlines()[0]:.200}",
            field="--data",
            help="Check the network, or put its files there by hand, or give a folder of pictures instead.",
        ) from error


def _targets(found: Any) -> list[int]:
    """Label numbers, without decoding pictures where torchvision keeps them apart."""
    for name in ("targets", "labels", "_labels", "y"):
        kept = getattr(found, name, None)
        if kept is not None and len(kept) == len(found):
            return [int(label) for label in kept]
    return [int(found[index][1]) for index in range(len(found))]


def _class_names(name: str, found: Any) -> list[str]:
    own = _NAMES / f"{name}.txt"
    if own.is_file():
        return own.read_text(encoding="utf-8").splitlines()
    classes: Sequence[str] = getattr(found, "classes", None) or found.categories
    if name == "Caltech256":  # 001.ak47, 002.american-flag, 251.airplanes-101
        return [re.sub(r"^\d+\.|-101$", "", written).replace("-", " ") for written in classes]
    return [written.replace("/", " ") for written in classes]  # SUN397: apartment_building/outdoor
