"""Groups of data sets that the literature measures on, with their splits and templates (presets.json).

A preset decides pictures and words only. Attacks are those of our threat levels, so that numbers can be
compared with published ones in order, not digit by digit.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from robustclip.errors import DataRefused, InvalidInput
from robustclip.models.vocabulary import imagenet_templates
from training.data.downloads import PREFIX, SPLITS, NamedDataSet, download
from training.data.labelled import ALL
from training.data.sources import Source

_FACTS = Path(__file__).with_name("presets.json")
Written: TypeAlias = tuple[str, ...] | Literal["imagenet", "cifar"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSet(_Data):
    """`split` is that of a folder of pictures; `coop` is the template that CoOp's authors chose."""

    split: str = "test"
    torchvision: str | None = None
    coop: str
    clip_benchmark: Written | None = None


class DataPreset(_Data):
    """`words`: one template for all, or `coop` or `clip_benchmark` for their templates."""

    about: str
    words: str
    data: tuple[str, ...]


class _Facts(_Data):
    data_sets: dict[str, DataSet]
    presets: dict[str, DataPreset]


@cache
def facts() -> _Facts:
    """All presets and the data sets they name."""
    return _Facts.model_validate_json(_FACTS.read_text(encoding="utf-8"))


def preset_sources(
    name: str, root: Path, *, only: Sequence[str] = (), downloading: bool = False
) -> list[Source]:
    """The data sets of a preset below `root`, or only some: folders of their names, else torchvision's files
    there.

    `downloading` fetches torchvision's if they are missing. DataRefused lists everything that is missing and
    how to get it, since no data set may be left out silently.
    """
    known = facts().presets
    if name not in known:
        raise InvalidInput(
            f"there is no preset {name!r}.", field="--preset", help=f"Known: {', '.join(known)}."
        )
    preset = known[name]
    for wanted in only:
        if wanted not in preset.data:
            raise InvalidInput(
                f"{name} has no data set {wanted!r}.",
                field="--only",
                help=f"It has {', '.join(preset.data)}.",
            )
    found: list[Source] = []
    missing: list[str] = []
    for data_set in (data_set for data_set in preset.data if not only or data_set in only):
        source = _source(data_set, preset, root, downloading)
        if isinstance(source, Source):
            found.append(source)
        else:
            missing.append(source)
    if missing:
        raise DataRefused(
            f"{len(missing)} of {len(found) + len(missing)} data sets of {name} are missing: "
            f"{'; '.join(missing)}.",
            field="--data",
            help="Put them there, or name those to measure with --only.",
        )
    return found


def templates(data_set: str, words: str) -> tuple[str, ...]:
    """The templates of a data set by `coop` or `clip_benchmark`, or `words` themselves."""
    known = facts().data_sets[data_set]
    if words == "coop":
        return (known.coop,)
    if words != "clip_benchmark":
        return (words,)
    if known.clip_benchmark == "imagenet":
        return imagenet_templates()
    if known.clip_benchmark == "cifar":
        return _cifar_templates()
    return known.clip_benchmark or (known.coop,)


def _source(data_set: str, preset: DataPreset, root: Path, downloading: bool) -> Source | str:
    """Where a data set is, or how to get it."""
    known, around = facts().data_sets[data_set], templates(data_set, preset.words)
    folder = root / data_set
    if folder.is_dir():
        return Source(folder=folder, split=known.split, templates=around)
    place = f"{data_set} (a folder {folder} with {known.split}.parquet or {known.split}/CLASS NAME/ pictures"
    if known.torchvision is None:
        return f"{place})"
    split = ALL if ALL in SPLITS[known.torchvision] else "test"
    try:
        download(NamedDataSet(known.torchvision, root), split, allowed=downloading)
    except DataRefused as error:
        return f"{place}, or {'its files: ' + error.message if downloading else '--download'})"
    return Source(folder=Path(f"{PREFIX}{known.torchvision}@{root}"), split=split, templates=around)


def _cifar_templates() -> tuple[str, ...]:
    """CLIP's eighteen templates for CIFAR: nine kinds of photo of `a` or `the` thing."""
    looks = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
    plain = [f"a {look}photo of {article} {{}}." for article, look in itertools.product(("a", "the"), looks)]
    sized = [
        f"a photo of {article} {size} {{}}."
        for article, size in itertools.product(("a", "the"), ("small", "big"))
    ]
    return (*plain, *sized)
