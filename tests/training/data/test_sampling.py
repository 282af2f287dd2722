from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustclip.errors import DataRefused
from training.data.folders import load_data
from training.data.labelled import LabelledImages
from training.data.sampling import HELD_OUT, balanced_subset, carve_validation, few_shot, open_split


def uneven(counts: list[int]) -> LabelledImages:
    targets = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    shuffled = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(5))]
    labels = tuple(f"label {index}" for index in range(len(counts)))
    return LabelledImages(
        Path("nowhere"), "train", labels, shuffled, tuple(map(str, range(len(targets)))), lambda index: b""
    )


def test_shots_are_that_many_of_each_class_and_depend_on_the_seed() -> None:
    data = uneven([20, 30, 16])
    everything = torch.arange(len(data))
    chosen = few_shot(data, everything, 16, 0)
    assert data.targets[chosen].bincount().tolist() == [16, 16, 16]
    assert len(set(chosen.tolist())) == 48
    assert torch.equal(chosen, few_shot(data, everything, 16, 0))
    assert not torch.equal(chosen, few_shot(data, everything, 16, 1))


def test_fewer_shots_are_among_more() -> None:
    data = uneven([20, 30, 16])
    everything = torch.arange(len(data))
    assert set(few_shot(data, everything, 4, 3).tolist()) < set(few_shot(data, everything, 8, 3).tolist())


def test_shots_come_from_the_candidates_alone() -> None:
    data = uneven([20, 30, 16])
    training, validation = carve_validation(data)
    assert not set(few_shot(data, training, 10, 0).tolist()) & set(validation.tolist())


def test_a_class_with_too_few_pictures_is_named_or_gives_all_it_has() -> None:
    data = uneven([20, 3, 16])
    everything = torch.arange(len(data))
    with pytest.raises(DataRefused, match="'label 1' has 3") as refused:
        few_shot(data, everything, 4, 0)
    assert refused.value.field == "--shots"
    assert data.targets[few_shot(data, everything, 4, 0, allow_fewer=True)].bincount().tolist() == [4, 3, 4]


def test_the_held_out_tenth_is_a_tenth_of_each_class_and_leaves_one_picture() -> None:
    data = uneven([100, 20, 1])
    training, validation = carve_validation(data)
    assert data.targets[validation].bincount(minlength=3).tolist() == [10, 2, 0]
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(121))


def test_what_is_held_out_can_be_opened_as_a_split(picture_folder: Path) -> None:
    data = load_data(picture_folder, "train")
    held_out = open_split(picture_folder, HELD_OUT)
    assert held_out.names == tuple(data.names[index] for index in carve_validation(data)[1].tolist())
    assert held_out.split == HELD_OUT
    assert len(open_split(picture_folder, "test")) == 18


@pytest.mark.parametrize("limit", [1, 4, 7, 24, 41])
def test_a_subset_is_as_balanced_as_the_classes_allow(limit: int) -> None:
    data = uneven([20, 30, 2])
    counts = data.targets[balanced_subset(data, limit, 0)].bincount(minlength=3).tolist()
    assert sum(counts) == limit
    assert min(2, limit // 3) <= counts[2] <= 2
    assert abs(counts[0] - counts[1]) <= 1


def test_no_limit_takes_all_in_order_and_other_seeds_take_others() -> None:
    data = uneven([20, 30, 2])
    assert balanced_subset(data, 0, 0).tolist() == balanced_subset(data, 99, 0).tolist() == list(range(52))
    assert not torch.equal(balanced_subset(data, 9, 0), balanced_subset(data, 9, 1))


def test_a_choice_depends_on_labels_and_not_on_the_global_generator() -> None:
    data = uneven([20, 30, 16])
    before = torch.get_rng_state()
    first = balanced_subset(data, 9, 0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, balanced_subset(replace(data, split="other"), 9, 0))
