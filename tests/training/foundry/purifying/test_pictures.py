"""What a step draws, and the pictures of pretraining."""

from functools import partial
from pathlib import Path

import pytest
import torch
from pictures import write_pictures
from tuning import silent

from robustclip.errors import InvalidInput
from training.foundry.blocks import draw_blocks
from training.foundry.corpus import TRAINING_SETS, Corpus, build_corpus, open_corpus
from training.foundry.purifying.exam import draw, squares


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for index, name in enumerate(TRAINING_SETS):
        write_pictures(root / name, size=24, train=2 + index)
    return root


def test_squares_have_the_asked_size_and_stay_in_range() -> None:
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for seed in range(6):
        cut = squares(pixels, 16, torch.Generator().manual_seed(seed))
        assert cut.shape == (5, 3, 16, 16)
        assert 0 <= cut.min() <= cut.max() <= 1
    whole = squares(pixels, 32, torch.Generator().manual_seed(0))
    assert all(
        torch.equal(one, picture) or torch.equal(one, picture.flip(-1))
        for one, picture in zip(whole, pixels, strict=True)
    )


def test_a_block_is_the_same_beside_any_others(drawings: Corpus) -> None:
    drawing = partial(draw, drawings, size=16)
    both = draw_blocks(drawing, drawings, [4, 7], seed=1, stream="purify-2")
    alone = draw_blocks(drawing, drawings, [7], seed=1, stream="purify-2")
    assert all(torch.equal(whole[16:], part) for whole, part in zip(both, alone, strict=True))
    assert not torch.equal(
        alone.pixels, draw_blocks(drawing, drawings, [7], seed=1, stream="purify-3").pixels
    )


def test_the_cache_and_what_is_kept_back_are_those_of_pretraining(folders: Path, tmp_path: Path) -> None:
    own = open_corpus(folders, tmp_path / "own", size=16, progress=silent)

    theirs = build_corpus(folders, tmp_path / "theirs", size=16, seed=0, progress=silent)
    rows = torch.arange(len(theirs.name))
    assert torch.equal(own.pixels(rows), theirs.pixels(rows))
    for mine, other in (
        (own.name, theirs.name),
        (own.source, theirs.source),
        (own.validation, theirs.validation),
    ):
        assert torch.equal(mine, other)
    assert own.names.texts == theirs.names.texts
    shared = tmp_path / "theirs" / "images-16-0.npy"
    before = shared.stat().st_mtime_ns
    again = open_corpus(folders, tmp_path / "theirs", size=16, progress=silent)
    assert torch.equal(again.pixels(rows), theirs.pixels(rows))
    assert shared.stat().st_mtime_ns == before


def test_a_cache_of_other_pictures_is_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus-16-0.json").write_text('{"cifar-10": "other"}')
    with pytest.raises(InvalidInput, match="other pictures"):
        open_corpus(folders, tmp_path, size=16, progress=silent)
