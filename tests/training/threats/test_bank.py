from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip.models.clip import Clip
from robustclip.models.towers import encode_image
from robustclip.seeds import derive, draw_seeds, row_uniform
from robustclip.types import Cost
from training.data.folders import load_data
from training.data.labelled import LabelledImages
from training.finished import Rows
from training.threats.bank import embedding_bank, feature_attack
from training.threats.judging import Pictures
from training.threats.t0 import shifted_pixels

EPS = 8 / 255


def silent(done: int, total: int, what: str) -> None:
    pass


@pytest.fixture(scope="module")
def data(picture_folder: Path) -> LabelledImages:
    return load_data(picture_folder, "test")


def bank(
    clip: Clip,
    data: LabelledImages,
    indices: Tensor,
    folder: Path,
    *,
    eps: float = EPS,
    copies: int = 1,
    clean: bool = False,
    seed: int = 0,
) -> Rows:
    attack = feature_attack(eps, steps=10)
    return embedding_bank(
        clip, data, indices, attack, copies=copies, clean=clean, seed=seed, folder=folder, progress=silent
    )


def transcribed_bank(clip: Clip, pixels: Tensor, noise: Tensor, eps: float, iterations: int) -> Tensor:
    """AdvPT's bank, word by word, on open_clip's own image tower."""

    def embed(images: Tensor) -> Tensor:
        return clip.model.encode_image((images - clip.mean[:, None, None]) / clip.std[:, None, None])

    clean = embed(pixels).softmax(dim=-1).detach()
    attacked = (pixels + eps * noise).clamp(0, 1)
    for _ in range(iterations):
        attacked.requires_grad_()
        shift = (clean * (clean / embed(attacked).softmax(dim=-1)).log()).sum()
        (gradient,) = torch.autograd.grad(shift, attacked)
        attacked = attacked.detach() + 1.25 * eps / iterations * gradient.sign()
        attacked = torch.max(torch.min(attacked, pixels + eps), pixels - eps).clamp(0, 1)
    return embed(attacked).detach()


def test_the_bank_is_the_methods_specification(tiny: Clip, data: LabelledImages, tmp_path: Path) -> None:
    indices = torch.tensor([2, 9, 15])
    pixels = data.pixels(indices, 32)
    start = derive(derive(draw_seeds(0, len(data))[indices], "bank-0"), "start-0")
    expected = transcribed_bank(tiny, pixels, row_uniform(start, (3, 32, 32), like=pixels), EPS, 10)
    found = bank(tiny, data, indices, tmp_path).rows
    assert found.shape == (3, 1, 32)
    assert torch.allclose(found[:, 0], expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(found[:, 0], encode_image(tiny, pixels), atol=1e-1)


def test_the_exact_preset_takes_steps_of_one_level_at_eight_levels() -> None:
    attack = feature_attack(8 / 255, steps=10)
    assert attack.step == pytest.approx(1 / 255)
    assert (attack.starts, attack.keep, attack.stop, attack.steps) == (("one_sided",), "last", "never", 10)
    assert feature_attack(16 / 255, steps=40).step == pytest.approx(0.5 / 255)


def test_embeddings_are_raw_and_a_radius_of_zero_gives_the_clean_ones(
    tiny: Clip, data: LabelledImages, tmp_path: Path
) -> None:
    indices = torch.arange(4)
    clean = encode_image(tiny, data.pixels(indices, 32))
    found = bank(tiny, data, indices, tmp_path, eps=0.0)
    assert torch.allclose(found.rows[:, 0], clean, atol=1e-5)
    assert not torch.allclose(clean.norm(dim=-1), torch.ones(4), atol=0.1)
    assert found.cost.backward == 0


def test_copies_start_differently_and_the_clean_embedding_stands_last(
    tiny: Clip, data: LabelledImages, tmp_path: Path
) -> None:
    indices = torch.arange(4)
    found = bank(tiny, data, indices, tmp_path, copies=2, clean=True).rows
    assert found.shape == (4, 3, 32)
    assert torch.equal(found[:, 0], bank(tiny, data, indices, tmp_path).rows[:, 0])
    assert not torch.allclose(found[:, 0], found[:, 1])
    assert torch.allclose(found[:, 2], encode_image(tiny, data.pixels(indices, 32)), atol=1e-5)


def test_a_row_depends_on_its_picture_and_not_on_which_others_are_chosen(
    tiny: Clip, data: LabelledImages, tmp_path: Path
) -> None:
    several = bank(tiny, data, torch.tensor([1, 4, 7]), tmp_path).rows
    alone = bank(tiny, data, torch.tensor([4]), tmp_path).rows
    assert torch.allclose(several[1], alone[0], atol=1e-3, rtol=1e-3)


def test_a_bank_reports_every_pass_also_when_it_is_read_again(
    tiny: Clip, data: LabelledImages, tmp_path: Path
) -> None:
    first, again = (bank(tiny, data, torch.arange(4), tmp_path) for _ in range(2))
    assert first.cost == again.cost == Cost(forward=4 * (1 + 11 + 1), backward=4 * 10)
    assert first.seconds == again.seconds > 0
    assert torch.equal(first.rows, again.rows)


def test_seeds_make_different_banks(tiny: Clip, data: LabelledImages, tmp_path: Path) -> None:
    assert not torch.equal(
        bank(tiny, data, torch.arange(2), tmp_path).rows,
        bank(tiny, data, torch.arange(2), tmp_path, seed=1).rows,
    )


def test_the_pictures_of_t0_stay_in_the_ball_and_move_the_embedding(
    tiny: Clip, data: LabelledImages, tmp_path: Path
) -> None:
    indices = torch.arange(6)
    pictures = Pictures(data, indices, 0, tmp_path)
    found = shifted_pixels(tiny, pictures, feature_attack(4 / 255, steps=40), silent).rows
    pixels = data.pixels(indices, 32)
    assert float((found - pixels).abs().max()) <= 4 / 255 + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    noise = (
        pixels + 4 / 255 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).sign()
    ).clamp(0, 1)
    clean = encode_image(tiny, pixels)
    moved, drifted = ((encode_image(tiny, images) - clean).norm(dim=-1).mean() for images in (found, noise))
    assert float(moved) > 2 * float(drifted)
