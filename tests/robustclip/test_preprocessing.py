"""Pixels: every way of preparing pictures that open_clip knows, against its own transform."""

import numpy
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from robustclip.models.architectures import pictures_of_tag
from robustclip.preprocessing import Preprocessing, to_pixels

SIZES = ((120, 80), (50, 90), (64, 64), (400, 3), (1, 30))


def picture(width: int, height: int) -> Image.Image:
    noise = numpy.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=numpy.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["squash", "longest"])
@pytest.mark.parametrize("size", SIZES)
def test_squash_and_longest_are_exactly_open_clips(
    mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    chosen = Preprocessing(32, mode, interpolation, 9 if mode == "longest" else 0)
    config = PreprocessCfg(
        size=32,
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=chosen.fill_color,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    if mode == "longest" and min(size) / max(size) * 32 < 0.5:
        assert to_pixels(picture(*size), chosen).shape == (3, 32, 32)  # open_clip would resize a side to 0
        return
    expected = image_transform_v2(config, is_train=False)(picture(*size))
    assert torch.equal(to_pixels(picture(*size), chosen), expected)


def test_every_way_of_open_clips_list_is_known() -> None:
    ways = {
        (config["resize_mode"], config["interpolation"])
        for config in (pictures_of_tag(arch, tag) for arch, tag in open_clip.list_pretrained())
    }
    assert ways == {
        ("shortest", "bicubic"),
        ("squash", "bicubic"),
        ("shortest", "bilinear"),
        ("squash", "bilinear"),
    }


def test_only_what_differs_from_openais_has_a_name() -> None:
    assert (Preprocessing(224).difference, Preprocessing(224).name) == ("", "224")
    assert Preprocessing(384, "squash", "bilinear").name == "384-squash-bilinear"
    assert Preprocessing(32, "longest", fill_color=7).difference == "longest-7"
    assert torch.equal(to_pixels(picture(90, 40), 32), to_pixels(picture(90, 40), Preprocessing(32)))
