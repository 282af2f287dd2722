"""Labelled pictures from folders of files, or from torchvision."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robustclip.errors import DataRefused, FeatureNotInstalled
from training.data.downloads import download, named_data
from training.data.labelled import ALL, LabelledImages, labelled

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SPLITS = ("train", "val", "validation", "test")


def load_data(folder: Path, split: str) -> LabelledImages:
    """Open one split of a folder of labelled pictures, or of `torchvision:NAME`. Folders have two layouts:

    - `{split}.parquet` (columns `image` {bytes, path} and `label`) beside `classes.txt`, one name a line;
    - `{split}/{class name}/*.jpg|png|webp`, or `{class name}/*` with split `all`. Without `classes.txt` the
      class folders of all splits are the labels.

    Labels with the same words are merged. DataRefused says what is wrong and what to do.
    """
    named = named_data(folder)
    if named is not None:
        return download(named, split)
    if not folder.is_dir():
        raise DataRefused(
            "no such folder.",
            field=str(folder),
            help="Give a folder of Parquet files with classes.txt, or of class folders.",
        )
    if any(folder.glob("*.parquet")):
        return _from_parquet(folder, split)
    return _from_folders(folder, split)


def load_pictures(folder: Path, split: str) -> LabelledImages:
    """The pictures of one split without labels, for learning from another network: every target is -1.

    Raises DataRefused as `load_data` does.
    """
    if any(folder.glob("*.parquet")):
        names, _, read = _parquet_rows(folder, split)
        return LabelledImages(folder, split, (), torch.full((len(names),), -1), names, read)
    data = load_data(folder, split)
    return replace(data, labels=(), targets=torch.full_like(data.targets, -1))


def _from_parquet(folder: Path, split: str) -> LabelledImages:
    names, targets, read = _parquet_rows(folder, split)
    classes = _class_names(folder)
    if classes is None:
        raise DataRefused(
            "Parquet files without classes.txt.",
            field=str(folder),
            help="Write one class name a line, in the order of the label numbers.",
        )
    for row, label in enumerate(targets):
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise DataRefused(
                f"{split}.parquet row {row} has label {label}, classes.txt has {len(classes)} names.",
                field=str(folder),
            )
    return labelled(folder, split, classes, targets, names, read)


def _parquet_rows(folder: Path, split: str) -> tuple[tuple[str, ...], list[Any], Callable[[int], bytes]]:
    """For each row a name for messages and the label as it stands; and how to read its picture."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise FeatureNotInstalled(
            "reading Parquet files needs pyarrow.", field=str(folder), help="Install robustclip[training]."
        ) from error
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataRefused(
            f"no split {split!r}.",
            field=str(folder),
            help=f"It has {', '.join(sorted(file.stem for file in folder.glob('*.parquet')))}.",
        )
    try:
        table = parquet.read_table(path, columns=["image", "label"])
        images, targets = table.column("image").combine_chunks(), table.column("label").to_pylist()
        encoded, paths = images.field("bytes"), images.field("path").to_pylist()
    except (arrow.ArrowException, OSError, KeyError, AttributeError) as error:
        raise DataRefused(
            f"{path.name} is not a Parquet file with columns image{{bytes, path}} and label: {error}",
            field=str(folder),
        ) from error

    def read(index: int) -> bytes:
        return encoded[index].as_py() or b""

    names = tuple(f"{path.name} row {row} ({name})" for row, name in enumerate(paths))
    return names, targets, read


def _from_folders(folder: Path, split: str) -> LabelledImages:
    splits = sorted(child.name for child in folder.iterdir() if child.is_dir() and _class_folders(child))
    if split != ALL and split not in splits:
        found = (
            f"It has {', '.join(splits)}."
            if splits
            else f"It has class folders and no splits: ask for {ALL!r}."
            if _class_folders(folder)
            else None
        )
        raise DataRefused(
            f"no split {split!r}.",
            field=str(folder),
            help=found or "Expected {split}.parquet files, or {split}/{class name}/ folders of pictures.",
        )
    root = folder if split == ALL else folder / split
    siblings = [root] if split == ALL else [folder / name for name in splits if name in {*_SPLITS, split}]
    classes = _class_names(folder) or sorted(
        {child.name for sibling in siblings for child in _class_folders(sibling)}
    )
    names: list[str] = []  # ImageNet has 1.3 million: nothing else of a picture is stored before its use
    targets: list[int] = []
    for child in _class_folders(root):
        if child.name not in classes:
            raise DataRefused(
                f"the class folder {child.name!r} is not in classes.txt.",
                field=str(folder),
                help="Add its name, or remove the folder.",
            )
        pictures = sorted(_pictures(child))
        names += [str(child.relative_to(folder) / name) for name in pictures]
        targets += [classes.index(child.name)] * len(pictures)
    return labelled(
        folder, split, classes, targets, tuple(names), lambda index: (folder / names[index]).read_bytes()
    )


def _class_names(folder: Path) -> list[str] | None:
    try:
        lines = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataRefused(f"classes.txt can't be read as UTF-8 text: {error}", field=str(folder)) from error
    while lines and not lines[-1].strip():
        lines.pop()
    for row, line in enumerate(lines):
        if not line.strip():
            raise DataRefused(
                f"classes.txt line {row + 1} is empty.",
                field=str(folder),
                help="A label number is a line number: give every line a name.",
            )
    return [line.strip() for line in lines]


def _class_folders(folder: Path) -> list[Path]:
    """Sub-folders with at least one picture directly inside, by name."""
    return [child for child in sorted(folder.iterdir()) if child.is_dir() and any(_pictures(child))]


def _pictures(folder: Path) -> Iterator[str]:
    """Names of pictures, in the order of the file system."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                yield entry.name
