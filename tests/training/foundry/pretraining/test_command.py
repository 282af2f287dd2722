"""Pretraining: names, captions, augmentation, caches."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_pictures
from torch import Tensor
from tuning import silent

from robustclip.backbones import read_weights, write_weights
from robustclip.errors import DataRefused, InvalidInput
from robustclip.models.clip import Clip
from training.foundry.augmentation import augment
from training.foundry.corpus import TRAINING_SETS, Corpus, Names, build_corpus, cached_array, gather_names
from training.foundry.pretraining.captions import (
    HELD_OUT_SYNONYMS,
    TEMPLATES,
    filler,
    synonyms,
    vocabulary,
    worded,
)


def test_names_that_data_sets_share_with_imagenet_are_one_name() -> None:
    names: Names = gather_names({"one": ("goldfish", "cat"), "two": ("cat", "truck")})
    assert len(names.texts) == 1002
    assert names.members["one"].tolist() == [1, 1000]
    assert names.members["two"].tolist() == [1000, 1001]


def test_captions_come_in_many_words_and_keep_the_name() -> None:
    texts = worded(["crane (bird)"] * 200, torch.Generator().manual_seed(0))
    assert all("crane" in text for text in texts)
    assert len(set(texts)) > len(TEMPLATES)
    assert 40 < sum("(bird)" in text for text in texts) < 160


def test_names_give_way_to_synonyms_and_never_to_held_out_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [
        text
        for _ in range(60)
        for text in worded(["cougar", "ladybug", "a brand-new toy"], generator, synonym_share=0.5)
    ]
    for words in ("cougar", "mountain lion", "ladybug", "lady beetle", "a brand-new toy"):
        assert any(words in text for text in texts), words
    assert not [text for text in texts if "puma" in text or "ladybird" in text]
    everything = {word for words in synonyms().values() for word in words} | {*vocabulary(20_000)}
    assert not everything & {*HELD_OUT_SYNONYMS.values()}


def test_no_synonym_means_two_classes() -> None:
    names = {name.lower() for name in synonyms()}
    words = [word.lower() for others in synonyms().values() for word in others]
    assert len(set(words)) == len(words)
    assert not names & set(words)


def test_the_vocabulary_is_plain_words() -> None:
    words = vocabulary(500)
    assert len(words) == 500
    assert all(word.isalpha() and word.islower() for word in words)


def test_fillers_stand_where_prompts_will_stand(tiny: Clip) -> None:
    assert filler(tiny, 0, torch.Generator()) is None
    fillers = [filler(tiny, 5, torch.Generator().manual_seed(seed)) for seed in range(60)]
    spreads = [
        float(vectors.std())
        for vectors in fillers
        if vectors is not None and vectors.shape == (1, 5, tiny.text_width)
    ]
    assert len(spreads) == 60
    assert sum(spread < 0.03 for spread in spreads) > 8
    assert sum(spread > 0.1 for spread in spreads) > 20


def test_augmentation_keeps_shape_and_range_and_follows_its_generator() -> None:
    pixels = torch.rand(16, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    once, again = (augment(pixels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert once.shape == pixels.shape
    assert 0 <= once.min() <= once.max() <= 1
    torch.testing.assert_close(once, again, atol=0, rtol=0)
    assert (once - pixels).abs().mean() > 0.01


def test_a_cache_of_other_pictures_is_refused(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for name in TRAINING_SETS:
        write_pictures(data / name, train=1)

    def build() -> Corpus:
        return build_corpus(
            data,
            run,
            size=32,
            seed=0,
            progress=silent,
        )

    assert len(build().name) == 9 * 3 - 2  # without the private classes
    assert torch.equal(build().name, build().name)
    shutil.rmtree(data / "cifar-10")
    write_pictures(data / "cifar-10", train=2)
    with pytest.raises(InvalidInput, match="other pictures of cifar-10"):
        build()


def test_a_missing_data_set_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / next(iter(TRAINING_SETS)), train=1)
    with pytest.raises(DataRefused, match="no such folder"):
        build_corpus(tmp_path, tmp_path / "run", size=32, seed=0, progress=silent)


def test_a_cached_array_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"

    def broken() -> object:
        yield np.ones((2, 3), dtype=np.float16)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached_array(path, (4, 3), np.float16, broken, silent, "x")
    assert not path.exists()
    whole = cached_array(
        path, (4, 3), np.float16, lambda: iter([np.ones((2, 3)), np.zeros((2, 3))]), silent, "x"
    )
    assert whole.sum() == 6
    assert cached_array(path, (4, 3), np.float16, broken, silent, "x").sum() == 6


def test_weights_survive_packing_to_what_their_precision_allows(tiny: Clip, tmp_path: Path) -> None:
    write_weights(tiny.model, tmp_path / "tiny.safetensors")
    restored: dict[str, Tensor] = read_weights(tmp_path / "tiny.safetensors")
    for name, tensor in tiny.model.state_dict().items():
        scale = tensor.abs().max()
        assert (restored[name] - tensor).abs().max() <= scale * (
            0.5 / 127 + 1e-3 if "token" in name else 1e-3
        )
