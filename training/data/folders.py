"""Labelled pictures from folders of files, or from torchvision."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robustclip.errors import DataRefused, FeatureNotInstalled
from robustclip.models.labels import as_read, meanings
from training.data.downloads import download, named_data
from training.data.labelled import ALL, LabelledImages, labelled, read_lines

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SPLITS = ("train", "val", "validation", "test")
# What archives, network drives and notebooks leave behind; everything that begins with a dot is, too.
_CLUTTER = ("__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "lost+found", "__pycache__")


def load_data(folder: Path, split: str) -> LabelledImages:
    """Open one split of a folder of labelled pictures, or of `torchvision:NAME`. Folders have two layouts:

    - `{split}.parquet` (columns `image` {bytes, path} and `label`) beside `classes.txt`, one name a line;
    - `{split}/{class name}/*.jpg|png|webp`, or `{class name}/*` with split `all`. Without `classes.txt` the
      class folders of all splits are the labels. Hidden files and folders don't count.

    Labels with the same words are merged, and folders belong to names of `classes.txt` with the same words.
    DataRefused says what is wrong and what to do: pictures that would not be read, and class folders that are
    empty in all splits, are wrong.
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
    if _tables(folder):
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
            help=f"It has {', '.join(_tables(folder))}.",
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


def _tables(folder: Path) -> list[str]:
    """The splits that are Parquet files."""
    return sorted(path.stem for path in folder.glob("*.parquet") if not _is_clutter(path.name))


def _from_folders(folder: Path, split: str) -> LabelledImages:
    inside = _content(folder).folders
    contents = {child: _content(child) for child in inside}
    splits = [child.name for child in inside if contents[child].folders]
    flat = any(content.pictures for content in contents.values())
    if split not in splits if split != ALL else not flat and not {*_SPLITS}.isdisjoint(splits):
        found = (
            f"It has class folders and no splits: ask for {ALL!r}."
            if flat
            else f"It has {', '.join(splits)}."
            if splits
            else "Expected {split}.parquet files, or {split}/{class name}/ folders of pictures."
        )
        raise DataRefused(f"no split {split!r}.", field=str(folder), help=found)
    root = folder if split == ALL else folder / split
    siblings = [root] if split == ALL else [folder / name for name in splits if name in {*_SPLITS, split}]
    filled = _filled_classes(folder, siblings)
    written = _class_names(folder)
    classes = written or sorted(filled)
    if stray := _content(root).pictures:
        raise DataRefused(
            f"{root.name}/{stray[0]} is in no class folder.",
            field=str(folder),
            help="Move it into the folder of its class, or remove it.",
        )
    names: list[str] = []  # ImageNet has 1.3 million: nothing else of a picture is stored before its use
    targets: list[int] = []
    children = [child for child in _content(root).folders if child.name in filled]
    for child, meant in zip(children, meanings([child.name for child in children], classes), strict=True):
        if not meant:
            raise DataRefused(
                f"the class folder {child.name!r} is not in classes.txt.",
                field=str(folder),
                help="Add its name, or remove the folder.",
            )
        content = _content(child)
        for below in content.folders:
            if _content(below).pictures:
                raise _not_read(folder, below)
        names += [str(child.relative_to(folder) / name) for name in content.pictures]
        targets += meant[:1] * len(
            content.pictures
        )  # where it can mean several, `labelled` refuses or merges them
    return labelled(
        folder, split, classes, targets, tuple(names), lambda index: (folder / names[index]).read_bytes()
    )


def _filled_classes(folder: Path, splits: list[Path]) -> set[str]:
    """Names of class folders that have pictures in one of the splits. DataRefused for a class without any."""
    filled: set[str] = set()
    hollow: list[Path] = []
    for child in (child for split in splits for child in _content(split).folders):
        if _content(child).pictures:
            filled.add(child.name)
        else:
            hollow.append(child)
    read = {as_read(name) for name in filled}
    for child in hollow:
        if as_read(child.name) not in read:
            for below in _content(child).folders:
                raise _not_read(folder, below)
            raise DataRefused(
                f"the class folder {child.name!r} has no pictures.",
                field=str(folder),
                help=f"Add some ({', '.join(SUFFIXES)}), or remove the folder.",
            )
    return filled | {child.name for child in hollow}


def _not_read(folder: Path, below: Path) -> DataRefused:
    return DataRefused(
        f"{below.relative_to(folder)} is a folder inside a class folder and would not be read.",
        field=str(folder),
        help="Move its pictures up into the class folder, or remove it.",
    )


def _class_names(folder: Path) -> list[str] | None:
    path = folder / "classes.txt"
    if not path.exists():
        return None
    lines = read_lines(path, field=str(folder))
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


class _Content(NamedTuple):
    """Names of pictures, and sub-folders, both in order."""

    pictures: list[str]
    folders: list[Path]


def _content(folder: Path) -> _Content:
    """What counts in a folder. DataRefused for a folder that can't be read, and for a link to nothing."""
    pictures: list[str] = []
    folders: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_clutter(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(folder / entry.name)
                elif entry.is_symlink() and not entry.is_file():
                    raise DataRefused(f"{entry.name} is a link to nothing.", field=str(folder))
                elif entry.name.lower().endswith(SUFFIXES):
                    pictures.append(entry.name)
    except OSError as error:
        raise DataRefused(
            f"{error.filename or folder} can't be read: {error.strerror}.", field=str(folder)
        ) from error
    return _Content(sorted(pictures), sorted(folders))


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER
