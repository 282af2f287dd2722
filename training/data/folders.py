"""Labelled pictures from folders of files.

Pictures become pixels through `robustclip.images`, the same path that a request to the service takes; there is no augmentation here.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from robustclip.errors import DataRefused, FeatureNotInstalled, ImageRefused
from robustclip.images import load_pixels
from robustclip.types import Pixels

ALL = "all"  # the split of a folder that has class folders and no splits
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SPLITS = ("train", "val", "validation", "test")


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """The pictures of one split.

    labels   distinct texts, underscores written as spaces; `targets` [n] int64 are indices into them.
    names    one a picture, for messages: a file name or a row.
    read     gives the encoded bytes of picture i.
    """

    folder: Path
    split: str
    labels: tuple[str, ...]
    targets: Tensor
    names: tuple[str, ...]
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def image_bytes(self, index: int) -> bytes:
        """The encoded picture; DataRefused if its file is gone."""
        try:
            return self.read(index)
        except OSError as error:
            raise DataRefused(f"{self.names[index]} can't be read: {error.strerror}.", field=str(self.folder)) from error

    def pixels(self, indices: Iterable[int] | Tensor, size: int) -> Pixels:
        """[n, 3, S, S] in [0, 1] on the k/255 lattice. DataRefused names a picture that does not decode."""
        rows = [self._pixels(int(index), size) for index in indices]
        return torch.stack(rows) if rows else torch.empty(0, 3, size, size)

    def subset(self, indices: Tensor, split: str) -> "LabelledImages":
        """Only these pictures, in this order, under the name of another split."""
        rows: list[int] = indices.tolist()
        names = tuple(self.names[row] for row in rows)

        def read(index: int) -> bytes:
            return self.read(rows[index])

        return replace(self, split=split, targets=self.targets[indices], names=names, read=read)

    @cached_property
    def digest(self) -> str:
        """sha256 over labels, targets and every picture's bytes: the key under which anything derived from this split is cached."""
        state = hashlib.sha256(repr((self.labels, self.targets.tolist())).encode())
        for index in range(len(self)):
            state.update(hashlib.sha256(self.image_bytes(index)).digest())
        return state.hexdigest()

    def _pixels(self, index: int, size: int) -> Tensor:
        try:
            return load_pixels(self.image_bytes(index), size)
        except ImageRefused as error:
            raise DataRefused(f"{self.names[index]} is no usable picture: {error}", field=str(self.folder), help="Repair or remove it.") from error


def with_labels(data: LabelledImages, labels: tuple[str, ...]) -> LabelledImages:
    """The same pictures under other names, one for each label; names that come twice become one label."""
    if labels == data.labels:
        return data
    distinct = tuple(dict.fromkeys(labels))
    position = torch.tensor([distinct.index(label) for label in labels])
    return replace(data, labels=distinct, targets=position[data.targets])


def load_data(folder: Path, split: str) -> LabelledImages:
    """Open one split of a folder of labelled pictures, or of what `torchvision:NAME` means. Two layouts:

    - `{split}.parquet` (columns `image` {bytes, path} and `label`) beside `classes.txt`, one name a line;
    - `{split}/{class name}/*.jpg|png|webp`, or `{class name}/*` with split `all`. Without `classes.txt` the class folders of all
      splits are the labels.

    Labels that read the same are merged. Raises DataRefused with what was found and what to do.
    """
    from training.data.downloads import download, named_data  # stands on this file

    named = named_data(folder)
    if named is not None:
        return download(named, split)
    if not folder.is_dir():
        raise DataRefused("no such folder.", field=str(folder), help="Give a folder of Parquet files with classes.txt, or of class folders.")
    if any(folder.glob("*.parquet")):
        return _from_parquet(folder, split)
    return _from_folders(folder, split)


def _from_parquet(folder: Path, split: str) -> LabelledImages:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise FeatureNotInstalled("reading Parquet files needs pyarrow.", field=str(folder), help="Install robustclip[training].") from error
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise DataRefused(
            f"no split {split!r}.", field=str(folder), help=f"It has {', '.join(sorted(file.stem for file in folder.glob('*.parquet')))}."
        )
    classes = _class_names(folder)
    if classes is None:
        raise DataRefused(
            "Parquet files without classes.txt.", field=str(folder), help="Write one class name a line, in the order of the label numbers."
        )
    try:
        table = parquet.read_table(path, columns=["image", "label"])
        images, raw_labels = table.column("image").combine_chunks(), table.column("label").to_pylist()
        encoded, paths = images.field("bytes"), images.field("path").to_pylist()
    except (arrow.ArrowException, OSError, KeyError, AttributeError) as error:
        raise DataRefused(f"{path.name} is not a Parquet file with columns image{{bytes, path}} and label: {error}", field=str(folder)) from error
    for row, label in enumerate(raw_labels):
        if not isinstance(label, int) or not 0 <= label < len(classes):
            raise DataRefused(f"{path.name} row {row} has label {label}, classes.txt has {len(classes)} names.", field=str(folder))

    def read(index: int) -> bytes:
        return encoded[index].as_py() or b""

    names = tuple(f"{path.name} row {row} ({name})" for row, name in enumerate(paths))
    return labelled(folder, split, classes, raw_labels, names, read)


def _from_folders(folder: Path, split: str) -> LabelledImages:
    splits = sorted(child.name for child in folder.iterdir() if child.is_dir() and _class_folders(child))
    if split != ALL and split not in splits:
        found = (
            f"It has {', '.join(splits)}." if splits else f"It has class folders and no splits: ask for {ALL!r}." if _class_folders(folder) else None
        )
        raise DataRefused(
            f"no split {split!r}.", field=str(folder), help=found or "Expected {split}.parquet files, or {split}/{class name}/ folders of pictures."
        )
    root = folder if split == ALL else folder / split
    siblings = [root] if split == ALL else [folder / name for name in splits if name in {*_SPLITS, split}]
    classes = _class_names(folder) or sorted({child.name for sibling in siblings for child in _class_folders(sibling)})
    names: list[str] = []  # all that is kept of a picture until it is asked for: ImageNet has 1.3 million
    targets: list[int] = []
    for child in _class_folders(root):
        if child.name not in classes:
            raise DataRefused(
                f"the class folder {child.name!r} is not in classes.txt.", field=str(folder), help="Add its name, or remove the folder."
            )
        pictures = sorted(_pictures(child))
        names += [str(child.relative_to(folder) / name) for name in pictures]
        targets += [classes.index(child.name)] * len(pictures)
    return labelled(folder, split, classes, targets, tuple(names), lambda index: (folder / names[index]).read_bytes())


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
                f"classes.txt line {row + 1} is empty.", field=str(folder), help="A label number is a line number: give every line a name."
            )
    return [line.strip() for line in lines]


def _class_folders(folder: Path) -> list[Path]:
    """Sub-folders with at least one picture directly inside, by name."""
    return [child for child in sorted(folder.iterdir()) if child.is_dir() and any(_pictures(child))]


def _pictures(folder: Path) -> Iterator[str]:
    """Names of pictures, in the folder's own order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file():
                yield entry.name


def labelled(
    folder: Path, split: str, classes: list[str], targets: list[int], names: tuple[str, ...], read: Callable[[int], bytes]
) -> LabelledImages:
    """Merge classes that read the same and refuse what no classifier can be measured on."""
    texts = [" ".join(name.replace("_", " ").split()) for name in classes]
    labels = tuple(dict.fromkeys(texts))
    if len(labels) < 2:
        raise DataRefused(f"expected at least 2 classes, found {len(labels)}.", field=str(folder))
    if not names:
        raise DataRefused(f"the split {split!r} has no pictures.", field=str(folder))
    position = [labels.index(text) for text in texts]
    merged = [position[target] for target in targets]
    return LabelledImages(folder, split, labels, torch.tensor(merged, dtype=torch.int64), names, read)
