import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from pictures import LABELS, write_pictures

from robustclip.errors import DataRefused
from training.data.folders import load_data
from training.data.labelled import LabelledImages


def write_parquet(folder: Path, split: str, pictures: list[tuple[bytes, int]], classes: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "classes.txt").write_text(classes)
    images = [{"bytes": data, "path": f"{number}.png"} for number, (data, _) in enumerate(pictures)]
    parquet.write_table(
        arrow.table({"image": images, "label": [label for _, label in pictures]}), folder / f"{split}.parquet"
    )
    return folder


def as_parquet(data: LabelledImages, folder: Path) -> Path:
    pictures = [(data.image_bytes(index), int(data.targets[index])) for index in range(len(data))]
    return write_parquet(folder, data.split, pictures, "\n".join(data.labels) + "\n")


def test_class_folders_and_parquet_files_hold_the_same_pictures(picture_folder: Path, tmp_path: Path) -> None:
    folders = load_data(picture_folder, "test")
    table = load_data(as_parquet(folders, tmp_path / "table"), "test")
    assert folders.labels == table.labels == LABELS
    assert torch.equal(folders.targets, table.targets)
    assert folders.digest == table.digest
    assert torch.equal(folders.pixels(range(18), 32), table.pixels(range(18), 32))


def test_pixels_are_exactly_those_of_the_file(picture_folder: Path) -> None:
    from PIL import Image

    data = load_data(picture_folder, "train")
    pixels = data.pixels([13], 32)
    image = Image.open(picture_folder / data.names[13])
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.dtype == torch.float32
    assert [round(float(value) * 255) for value in pixels[0, :, 5, 7]] == list(image.getpixel((7, 5)))


def test_no_indices_give_no_pixels(picture_folder: Path) -> None:
    assert load_data(picture_folder, "train").pixels([], 32).shape == (0, 3, 32, 32)


def test_labels_that_read_the_same_are_merged(picture_folder: Path, tmp_path: Path) -> None:
    picture = load_data(picture_folder, "test").image_bytes(0)
    folder = write_parquet(
        tmp_path / "table", "train", [(picture, 0), (picture, 1), (picture, 2)], "hot_dog\nhot dog\ncat\n"
    )
    data = load_data(folder, "train")
    assert data.labels == ("hot dog", "cat")
    assert data.targets.tolist() == [0, 0, 1]


def test_labels_are_those_of_all_splits(tmp_path: Path) -> None:
    write_pictures(tmp_path, train=1, test=1)
    for file in (tmp_path / "test" / "green_thing").iterdir():
        file.unlink()
    data = load_data(tmp_path, "test")
    assert data.labels == LABELS
    assert data.targets.tolist() == [0, 2]


def test_class_folders_without_splits_are_read_as_all(tmp_path: Path) -> None:
    write_pictures(tmp_path, train=2)
    assert len(load_data(tmp_path / "train", "all")) == 6
    with pytest.raises(DataRefused, match="ask for 'all'"):
        load_data(tmp_path / "train", "test")


def test_the_digest_sees_every_byte_label_and_target(picture_folder: Path, tmp_path: Path) -> None:
    whole = load_data(picture_folder, "test")
    part = whole.subset(torch.arange(17), "part")
    table = as_parquet(whole, tmp_path / "table")
    renamed = load_data(table, "test")
    (table / "classes.txt").write_text("a\nb\nc\n")
    assert len({whole.digest, part.digest, load_data(table, "test").digest}) == 3
    assert renamed.digest == whole.digest
    assert len(whole.digest) == len(hashlib.sha256().hexdigest())


def test_a_subset_is_those_pictures_in_that_order(picture_folder: Path) -> None:
    whole = load_data(picture_folder, "train")
    part = whole.subset(torch.tensor([20, 3]), "part")
    assert part.split == "part"
    assert part.names == (whole.names[20], whole.names[3])
    assert torch.equal(part.pixels([0, 1], 32), whole.pixels([20, 3], 32))
    assert part.targets.tolist() == [1, 0]


def _no_classes(folder: Path) -> None:
    (folder / "classes.txt").unlink()


def _blank_line(folder: Path) -> None:
    (folder / "classes.txt").write_text("a\n\nc\n")


def _not_text(folder: Path) -> None:
    (folder / "classes.txt").write_bytes(b"\xff\xfe\x00")


def _one_class(folder: Path) -> None:
    write_parquet(folder, "test", [(b"", 0), (b"", 1)], "hot dog\nhot_dog\n")


def _too_few_names(folder: Path) -> None:
    (folder / "classes.txt").write_text("a\nb\n")


def _not_parquet(folder: Path) -> None:
    (folder / "test.parquet").write_bytes(b"PAR1 no table")


def _other_columns(folder: Path) -> None:
    parquet.write_table(arrow.table({"picture": [b""], "label": [0]}), folder / "test.parquet")


def _bytes_only(folder: Path) -> None:
    parquet.write_table(arrow.table({"image": [b"png"], "label": [0]}), folder / "test.parquet")


def _no_rows(folder: Path) -> None:
    table = parquet.read_table(folder / "test.parquet")
    parquet.write_table(table.slice(0, 0), folder / "test.parquet")


def _negative_label(folder: Path) -> None:
    write_parquet(folder, "test", [(b"", 0), (b"", -1)], "a\nb\nc\n")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_no_classes, "without classes.txt"),
        (_blank_line, "line 2 is empty"),
        (_not_text, "UTF-8"),
        (_one_class, "at least 2 classes, found 1"),
        (_too_few_names, r"test.parquet row \d+ has label 2, classes.txt has 2 names"),
        (_not_parquet, "not a Parquet file"),
        (_other_columns, "not a Parquet file with columns"),
        (_bytes_only, "not a Parquet file with columns"),
        (_no_rows, "no pictures"),
        (_negative_label, "row 1 has label -1"),
    ],
)
def test_spoiled_tables_are_refused_with_their_reason(
    picture_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    folder = as_parquet(load_data(picture_folder, "test"), tmp_path / "table")
    spoil(folder)
    with pytest.raises(DataRefused, match=complaint):
        load_data(folder, "test")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(
    picture_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataRefused, match=r"no split 'val'. It has test, train"):
        load_data(picture_folder, "val")
    with pytest.raises(DataRefused, match=r"no split 'train'. It has test"):
        load_data(as_parquet(load_data(picture_folder, "test"), tmp_path / "table"), "train")
    with pytest.raises(DataRefused, match="no such folder"):
        load_data(tmp_path / "nowhere", "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataRefused, match="Expected"):
        load_data(tmp_path / "empty", "test")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes) -> None:
    write_pictures(tmp_path, test=2)
    (tmp_path / "test" / "red_thing" / "1.png").write_bytes(content)
    data = load_data(tmp_path, "test")
    assert data.pixels([0, 1, 2, 3, 4], 32).shape[0] == 5
    with pytest.raises(DataRefused, match=r"test/red_thing/1.png"):
        data.pixels([5], 32)


def test_a_picture_that_has_gone_is_named(tmp_path: Path) -> None:
    data = load_data(write_pictures(tmp_path, test=2), "test")
    (tmp_path / "test" / "red_thing" / "1.png").unlink()
    with pytest.raises(DataRefused, match=r"test/red_thing/1.png"):
        data.image_bytes(5)


@pytest.mark.data
def test_the_shared_data_sets_read_as_described(shared_data: Path) -> None:
    expected = {
        "caltech-101": (2893, 101),
        "cifar-10": (10_000, 10),
        "flowers-102-partial": (1120, 90),
        "dtd-10": (1200, 10),
    }
    for name, (pictures, labels) in expected.items():
        data = load_data(shared_data / name, "test")
        assert (len(data), len(data.labels)) == (pictures, labels)
        assert data.pixels([0, pictures - 1], 32).shape == (2, 3, 32, 32)
