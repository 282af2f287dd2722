"""Choices among labelled pictures: shots, a held-out part, a balanced subset.

Each depends on labels, counts and the seed alone.
"""

from pathlib import Path

import torch
from torch import Tensor

from robustclip.errors import DataRefused
from robustclip.seeds import derive, draw_seeds
from training.data.folders import load_data
from training.data.labelled import LabelledImages

TRAIN = "train"
HELD_OUT = "train:validation"  # for `evaluate`, the pictures that `train` never trains on
HELD_OUT_SHARE = 0.1
HELD_OUT_SEED = 0  # not the seed of a run: all methods, shots and runs are validated on the same pictures


def open_split(folder: Path, split: str) -> LabelledImages:
    """As `load_data`, and `train:validation`: the tenth of each training class that every run holds out."""
    if split != HELD_OUT:
        return load_data(folder, split)
    data = load_data(folder, TRAIN)
    return data.subset(carve_validation(data)[1], HELD_OUT)


def carve_validation(
    data: LabelledImages, share: float = HELD_OUT_SHARE, seed: int = HELD_OUT_SEED
) -> tuple[Tensor, Tensor]:
    """(training, validation) sorted indices; `share` of each class is held out, but not its last picture."""
    training: list[Tensor] = []
    validation: list[Tensor] = []
    for members in _shuffled_by_class(data, torch.arange(len(data)), seed):
        held = min(round(share * len(members)), max(len(members) - 1, 0))
        validation.append(members[:held])
        training.append(members[held:])
    return torch.cat(training).sort().values, torch.cat(validation).sort().values


def few_shot(
    data: LabelledImages, candidates: Tensor, shots: int, seed: int, *, allow_fewer: bool = False
) -> Tensor:
    """[<= C * shots] sorted indices among `candidates`, `shots` a class; fewer shots of a seed are a subset
    of more.

    DataRefused names the classes with too few pictures, and apart from these the classes without any, which
    have some in another split only; with `allow_fewer` all their pictures are taken.
    """
    chosen: list[Tensor] = []
    short: list[str] = []
    for label, members in zip(data.labels, _shuffled_by_class(data, candidates, seed), strict=True):
        if len(members) < shots:
            short.append(f"{label!r} has {len(members)}")
        chosen.append(members[:shots])
    missing = [label for label, rows in zip(data.labels, chosen, strict=True) if not len(rows)]
    if missing and not allow_fewer:
        raise DataRefused(
            f"the split {data.split!r} has no picture of {', '.join(map(repr, missing[:5]))}"
            f"{' ...' if len(missing) > 5 else ''}, a class of other splits or of classes.txt.",
            field="--data",
            help="Add pictures there, name the classes to train on with --classes, or take it as a name "
            "without pictures with --allow-fewer-shots.",
        )
    if short and not allow_fewer:
        raise DataRefused(
            f"{shots} shots a class asked, but {', '.join(short[:5])}{' ...' if len(short) > 5 else ''}.",
            field="--shots",
            help="Ask for fewer, or let such classes give what they have with --allow-fewer-shots.",
        )
    return torch.cat(chosen).sort().values


def balanced_subset(data: LabelledImages, limit: int, seed: int) -> Tensor:
    """[min(limit, n)] sorted indices, as many of each class as sizes allow; limit 0 takes all pictures."""
    if limit == 0 or limit >= len(data):
        return torch.arange(len(data))
    classes = _shuffled_by_class(data, torch.arange(len(data)), seed)
    order = torch.randperm(len(classes), generator=seeded(seed, "classes")).tolist()
    rounds = range(max(len(members) for members in classes))
    taken = [int(classes[label][turn]) for turn in rounds for label in order if turn < len(classes[label])]
    return torch.tensor(taken[:limit]).sort().values


def seeded(seed: int, stream: str) -> torch.Generator:
    """An independent generator for each use of a seed."""
    return torch.Generator().manual_seed(int(derive(torch.tensor([seed]), stream)))


def _shuffled_by_class(data: LabelledImages, candidates: Tensor, seed: int) -> list[Tensor]:
    """The candidates of each class in random order, which does not depend on the other classes."""
    targets = data.targets[candidates]
    members = [candidates[targets == label].sort().values for label in range(len(data.labels))]
    generators = [torch.Generator().manual_seed(each) for each in draw_seeds(seed, len(members)).tolist()]
    return [
        rows[torch.randperm(len(rows), generator=generator)]
        for rows, generator in zip(members, generators, strict=True)
    ]
