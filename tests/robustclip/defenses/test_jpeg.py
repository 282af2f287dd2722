import io
from typing import Literal

import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from toys import Purified, gratings, trained_conv

from robustclip.attacks.pgd import PGD
from robustclip.defenses.jpeg import Jpeg, soft_jpeg
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf


def photographs(size: int) -> Tensor:
    squares = [Image.fromarray(picture()[:300, 60:360]) for picture in (data.chelsea, data.rocket)]
    return (
        torch.stack(
            [pil_to_tensor(square.resize((size, size), Image.Resampling.BICUBIC)) for square in squares]
        ).float()
        / 255
    )


PHOTOGRAPHS = photographs(96)
SEEDS = draw_seeds(71, 2)

every_setting = pytest.mark.parametrize(
    ("quality", "subsampling"), [(75, "4:2:0"), (75, "4:4:4"), (30, "4:2:0"), (95, "4:2:0"), (100, "4:4:4")]
)


@every_setting
def test_what_is_served_is_what_pillow_decodes(quality: int, subsampling: Literal["4:2:0", "4:4:4"]) -> None:
    served = Jpeg(quality=quality, subsampling=subsampling)(PHOTOGRAPHS, SEEDS)
    for picture, out in zip(PHOTOGRAPHS, served, strict=True):
        file = io.BytesIO()
        Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(
            file, "JPEG", quality=quality, subsampling=subsampling
        )
        assert torch.equal(pil_to_tensor(Image.open(file)), (out * 255).round().byte())


@every_setting
@pytest.mark.parametrize("size", [96, 90])
def test_the_soft_codec_stays_near_pillow_on_photographs(
    quality: int, subsampling: Literal["4:2:0", "4:4:4"], size: int
) -> None:
    pictures = photographs(size)
    served = Jpeg(quality=quality, subsampling=subsampling)(pictures, SEEDS)
    soft = soft_jpeg(pictures, quality=quality, halved_color=subsampling == "4:2:0")
    assert (soft - served).abs().mean() < 2 / 255
    if quality < 100:
        assert (soft - served).abs().mean() < 0.6 * (served - pictures).abs().mean()


def test_the_soft_codec_treats_a_row_by_itself() -> None:
    whole = soft_jpeg(PHOTOGRAPHS, quality=50, halved_color=True)
    assert torch.allclose(soft_jpeg(PHOTOGRAPHS[1:], quality=50, halved_color=True), whole[1:], atol=1e-6)


def test_both_backward_passes_break_it_and_the_soft_one_breaks_more() -> None:
    """Why `soft` is the default: at low quality the identity points at frequencies that JPEG removes."""
    pixels, targets = gratings(32, seed=72)
    seeds = draw_seeds(72, 32)

    def broken(backward: Literal["soft", "identity"], quality: int) -> float:
        score = label_score(
            "margin", Purified(trained_conv(), Jpeg(quality=quality, backward=backward)), targets
        )
        return float(
            (PGD(ball=Linf(radius=4 / 255), starts=("zero",))(score, pixels, seeds).margin > 0).float().mean()
        )

    assert broken("soft", 25) > broken("identity", 25) + 0.2
    assert broken("soft", 75) > 0.6
    assert broken("identity", 75) > 0.6
