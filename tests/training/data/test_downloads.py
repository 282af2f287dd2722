"""Data sets of torchvision, from files that are there: nothing is fetched."""

from pathlib import Path

import pytest
import torch
from pictures import write_pictures
from PIL import Image

from robustclip.errors import DataRefused
from training.data.downloads import PREFIX, SPLITS, NamedDataSet, download, named_data
from training.data.folders import load_data

FOLDERS = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """EuroSAT as torchvision keeps it, one picture a class, and a second one of the sea."""
    for number, name in enumerate(FOLDERS):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), (20 * number, 0, 255)).save(folder / f"{name}_1.png")
    Image.new("L", (64, 64), 77).save(tmp_path / "eurosat" / "2750" / "SeaLake" / "SeaLake_2.png")
    return tmp_path


def test_a_name_stands_for_a_data_set_of_torchvision(fields: Path) -> None:
    data = load_data(Path(f"{PREFIX}EuroSAT@{fields}"), "all")
    assert (len(data), len(data.labels)) == (11, 10)
    assert data.labels[0] == "annual crop land"  # and not AnnualCrop
    assert data.targets.tolist() == [*range(10), 9]
    assert torch.equal(
        (data.pixels([3, 10], 64)[:, :, 5, 7] * 255).round(), torch.tensor([[60.0, 0, 255], [77, 77, 77]])
    )
    assert data.folder.name == "EuroSAT"


def test_a_name_has_a_folder_of_its_own_or_the_usual_one() -> None:
    assert named_data("pictures/cifar") is None
    assert named_data("torchvision:DTD") == NamedDataSet("DTD", Path("var/data"))
    assert named_data(Path("torchvision:DTD@some/where")) == NamedDataSet("DTD", Path("some/where"))
    with pytest.raises(DataRefused, match="Known: CIFAR10"):
        named_data("torchvision:MNIST1D")


def test_what_is_not_there_and_may_not_be_fetched_is_refused(tmp_path: Path) -> None:
    for name in ("CIFAR10", "Food101", "Caltech101"):
        with pytest.raises(DataRefused, match=f"can't open {name}"):
            download(NamedDataSet(name, tmp_path), next(iter(SPLITS[name])), allowed=False)


def test_a_split_that_a_data_set_lacks_is_refused_with_those_it_has(fields: Path) -> None:
    with pytest.raises(DataRefused, match="It has all"):
        load_data(Path(f"{PREFIX}EuroSAT@{fields}"), "test")


def test_every_name_is_known_to_torchvision() -> None:
    from torchvision import datasets

    assert [name for name in SPLITS if not hasattr(datasets, name)] == []


def test_folders_are_read_as_before(tmp_path: Path) -> None:
    assert len(load_data(write_pictures(tmp_path, test=1), "test")) == 3
