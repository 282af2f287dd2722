from pathlib import Path

import pytest
from pictures import write_pictures

from robustclip.errors import DataRefused, InvalidInput
from robustclip.models.prompts import check_template
from training.data.downloads import SPLITS
from training.data.presets import facts, preset_sources, templates
from training.data.sources import Source


def test_a_preset_is_its_folders_with_their_splits_and_words(tmp_path: Path) -> None:
    for name in facts().presets["local"].data:
        write_pictures(tmp_path / name, **{facts().data_sets[name].split: 1})
    sources = preset_sources("local", tmp_path)
    assert [source.name for source in sources] == list(facts().presets["local"].data)
    words = {source.name: source.templates for source in sources}
    assert words["flowers-102-partial"] == ("a photo of a {}, a type of flower.",)
    assert {source.name: source.split for source in sources}["tiny-imagenet-200"] == "val"
    assert all(len(source.open()) == 3 for source in sources)


def test_everything_missing_is_listed_with_how_to_get_it_and_nothing_left_out(tmp_path: Path) -> None:
    write_pictures(tmp_path / "caltech-101", test=1)
    with pytest.raises(DataRefused) as refused:
        preset_sources("coop11", tmp_path)
    message = str(refused.value)
    assert "10 of 11 data sets of coop11 are missing" in message
    assert all(name in message for name in ("imagenet", "ucf101", "food-101", "--download", "--only"))
    assert "caltech-101 (" not in message
    assert [source.name for source in preset_sources("coop11", tmp_path, only=["caltech-101"])] == [
        "caltech-101"
    ]


def test_unknown_names_are_refused_with_the_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="Known: local"):
        preset_sources("everything", tmp_path)
    with pytest.raises(InvalidInput, match="It has tiny-imagenet-200"):
        preset_sources("local", tmp_path, only=["imagenet"])


def test_presets_are_as_long_as_their_names_say_and_know_what_they_name() -> None:
    presets = facts().presets
    assert {name: len(set(preset.data)) for name, preset in presets.items()} == {
        "local": 6,
        "coop11": 11,
        "tecoa16": 16,
        "fare14": 14,
    }
    used = {name for preset in presets.values() for name in preset.data}
    assert used <= set(facts().data_sets)
    assert {own.torchvision for own in facts().data_sets.values() if own.torchvision} <= set(SPLITS)


@pytest.mark.parametrize(
    ("data_set", "words", "count"),
    [
        ("cifar-10", "clip_benchmark", 18),
        ("imagenet-r", "clip_benchmark", 80),
        ("caltech-101", "clip_benchmark", 34),
        ("dtd", "coop", 1),
        ("pcam", "This is {}", 1),
    ],
)
def test_every_template_has_one_place_for_the_label(data_set: str, words: str, count: int) -> None:
    found = templates(data_set, words)
    assert len(set(found)) == len(found) == count
    assert all(check_template(template) for template in found)


def test_the_words_of_cifar_say_a_and_the() -> None:
    found = templates("cifar-100", "clip_benchmark")
    assert {"a photo of a {}.", "a blurry photo of the {}.", "a photo of the big {}."} <= set(found)


def test_imagenets_numbers_become_its_names_and_twins_one_label(tmp_path: Path) -> None:
    for split in ("val",):
        write_pictures(tmp_path, **{split: 1})
        for old, new in (
            ("red_thing", "n01440764"),
            ("green_thing", "n02012849"),
            ("blue_thing", "n03126707"),
        ):
            (tmp_path / split / old).rename(tmp_path / split / new)
    data = Source(folder=tmp_path, split="val").open()
    assert data.labels[0] == "tench"
    assert all(not label.startswith("n0") for label in data.labels)
    assert len(set(data.labels)) == len(data.labels)
