"""Labelled pictures of one split, from any storage.

They become pixels by `robustclip.images`, as in a request to the service; there is no augmentation here.
"""

import codecs
import hashlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from robustclip.errors import DataRefused, ImageRefused
from robustclip.images import load_pixels
from robustclip.models.labels import as_read
from robustclip.preprocessing import Preprocessing
from robustclip.types import Pixels

ALL = "all"  # the split of a folder that has class folders and no splits


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """The pictures of one split.

    labels   distinct texts, as CLIP reads them; `targets` [n] int64 are indices into them.
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
        """The encoded picture. DataRefused if its file is gone."""
        try:
            return self.read(index)
        except OSError as error:
            raise DataRefused(
                f"{self.names[index]} can't be read: {error.strerror}.", field=str(self.folder)
            ) from error

    def pixels(self, indices: Iterable[int] | Tensor, preprocessing: Preprocessing | int) -> Pixels:
        """[n, 3, S, S] in [0, 1] on the k/255 lattice. DataRefused names a picture that does not decode."""
        size = preprocessing if isinstance(preprocessing, int) else preprocessing.size
        rows = [self._pixels(int(index), preprocessing) for index in indices]
        return torch.stack(rows) if rows else torch.empty(0, 3, size, size)

    def subset(self, indices: Tensor, split: str) -> "LabelledImages":
        """Only these pictures, in this order, as a split of another name."""
        rows: list[int] = indices.tolist()
        names = tuple(self.names[row] for row in rows)

        def read(index: int) -> bytes:
            return self.read(rows[index])

        return replace(self, split=split, targets=self.targets[indices], names=names, read=read)

    @cached_property
    def digest(self) -> str:
        """sha256 over labels, targets and every picture's bytes: part of the key of everything that is
        cached.
        """
        state = hashlib.sha256(repr((self.labels, self.targets.tolist())).encode())
        for index in range(len(self)):
            state.update(hashlib.sha256(self.image_bytes(index)).digest())
        return state.hexdigest()

    def _pixels(self, index: int, preprocessing: Preprocessing | int) -> Tensor:
        try:
            return load_pixels(self.image_bytes(index), preprocessing)
        except ImageRefused as error:
            raise DataRefused(
                f"{self.names[index]} is no usable picture: {error}",
                field=str(self.folder),
                help="Repair or remove it.",
            ) from error


def read_lines(path: Path, *, field: str) -> list[str]:
    """The lines of a UTF-8 text file, with or without a byte order mark. DataRefused for anything else."""
    try:
        data = path.read_bytes()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataRefused(
                f"{path.name} can't be read as UTF-8 text: it is UTF-16.",
                field=field,
                help="Save it as UTF-8.",
            )
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataRefused(f"{path.name} can't be read as UTF-8 text: {error}", field=field) from error
    return io.StringIO(text, newline=None).read().split("\n")


def with_labels(data: LabelledImages, labels: tuple[str, ...]) -> LabelledImages:
    """The same pictures with a new name for each label; equal names become one label."""
    if labels == data.labels:
        return data
    distinct = tuple(dict.fromkeys(labels))
    position = torch.tensor([distinct.index(label) for label in labels])
    return replace(data, labels=distinct, targets=position[data.targets])


def labelled(
    folder: Path,
    split: str,
    classes: list[str],
    targets: list[int],
    names: tuple[str, ...],
    read: Callable[[int], bytes],
) -> LabelledImages:
    """Merge classes with the same words. DataRefused for fewer than 2 classes, for two that only their
    capitals tell apart, for a name without words, and for no pictures.
    """
    texts = [as_read(name) for name in classes]
    labels = tuple(dict.fromkeys(texts))
    if "" in texts:
        raise DataRefused(
            f"the class {classes[texts.index('')]!r} has no name that one can read.", field=str(folder)
        )
    if len(labels) < 2:
        raise DataRefused(f"expected at least 2 classes, found {len(labels)}.", field=str(folder))
    lowered: dict[str, str] = {}
    for label in labels:
        if (other := lowered.setdefault(label.lower(), label)) != label:
            raise DataRefused(
                f"the classes {other!r} and {label!r} are the same to CLIP.",
                field=str(folder),
                help="Give one of them another name, or put their pictures together.",
            )
    if not names:
        raise DataRefused(f"the split {split!r} has no pictures.", field=str(folder))
    position = [labels.index(text) for text in texts]
    merged = [position[target] for target in targets]
    return LabelledImages(folder, split, labels, torch.tensor(merged, dtype=torch.int64), names, read)
