import hashlib
import io
import time
from typing import Any

import numpy
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from robustclip.errors import InvalidInput
from robustclip.images import ImageLimits, decode_image, image_info, load_pixels, pixels_to_png
from robustclip.preprocessing import to_pixels


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> numpy.ndarray[Any, Any]:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=numpy.uint8)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def quarters() -> Image.Image:
    """32 x 16, red left above, green right above, blue left below, white right below: no turn of it looks
    like another.
    """
    image = Image.new("RGB", (32, 16), "white")
    for colour, corner in (("red", (0, 0)), ("lime", (16, 0)), ("blue", (0, 8))):
        image.paste(colour, (*corner, corner[0] + 16, corner[1] + 8))
    return image


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_pictures_come_back_as_they_were(format: str, options: dict[str, Any]) -> None:
    picture = noise(40, 30)
    found = decode_image(saved(Image.fromarray(picture), format, **options))
    assert (found.mode, found.size) == ("RGB", (40, 30))
    assert numpy.array_equal(numpy.asarray(found), picture)


def test_every_format_and_a_progressive_jpeg_is_read() -> None:
    picture = Image.fromarray(skimage.data.chelsea()).resize((150, 100))
    for data in (
        saved(picture, "JPEG"),
        saved(picture, "JPEG", progressive=True),
        saved(picture, "WEBP"),
        saved(picture, "PNG"),
    ):
        assert numpy.abs(numpy.asarray(decode_image(data)).astype(int) - numpy.asarray(picture)).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_undone(orientation: int, format: str) -> None:
    undo: dict[int, list[Image.Transpose]] = {  # how the camera stored what stood upright
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_TOP_BOTTOM],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.ROTATE_270, Image.Transpose.FLIP_TOP_BOTTOM],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = quarters()
    for step in undo[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[format]
    found = decode_image(saved(stored, format, exif=exif, **options))
    assert found.size == (32, 16)
    difference = numpy.abs(numpy.asarray(found).astype(int) - numpy.asarray(quarters()))
    assert difference.max() <= (40 if format == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "block", [b"", b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"nonsense" * 10]
)
def test_an_unreadable_exif_block_leaves_the_picture_alone(block: bytes) -> None:
    assert decode_image(saved(quarters(), "JPEG", exif=block)).size == (32, 16)


def test_transparency_is_laid_over_white() -> None:
    picture = noise(8, 8, 4)
    alpha = picture[..., 3:].astype(float) / 255
    expected = picture[..., :3] * alpha + 255 * (1 - alpha)
    found = numpy.asarray(decode_image(saved(Image.fromarray(picture)))).astype(float)
    assert numpy.abs(found - expected).max() <= 1
    hidden = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode_image(saved(hidden, "WEBP", lossless=True, exact=True)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P"])
def test_grey_and_palette_pictures_become_rgb(mode: str) -> None:
    picture = quarters().convert(mode)
    assert numpy.array_equal(
        numpy.asarray(decode_image(saved(picture))), numpy.asarray(picture.convert("RGB"))
    )


def test_a_transparent_palette_entry_becomes_white() -> None:
    picture = quarters().quantize(4)
    blue = picture.getpixel((0, 15))
    found = decode_image(saved(picture, transparency=blue))
    assert found.getpixel((0, 15)) == (255, 255, 255)
    assert found.getpixel((0, 0)) == picture.convert("RGB").getpixel((0, 0))


def test_a_transparent_colour_becomes_white_in_8_and_in_16_bits() -> None:
    assert decode_image(saved(quarters(), transparency=(0, 0, 255))).getpixel((0, 15)) == (255, 255, 255)
    grey = Image.fromarray(numpy.full((2, 2), 0x1234, numpy.uint16))
    assert decode_image(saved(grey)).getpixel((0, 0)) == (0x12, 0x12, 0x12)
    assert decode_image(saved(grey, transparency=0x1234)).getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_grey_keeps_its_upper_8_bits() -> None:
    levels = numpy.arange(0, 65536, 257, dtype=numpy.uint16).reshape(16, 16)
    found = numpy.asarray(decode_image(saved(Image.fromarray(levels))))
    assert numpy.array_equal(found[..., 0], numpy.arange(256).reshape(16, 16))


def test_cmyk_is_converted() -> None:
    found = numpy.asarray(decode_image(saved(quarters().convert("CMYK"), "JPEG", quality=95))).astype(int)
    assert numpy.abs(found - numpy.asarray(quarters())).mean() < 4


def test_info_tells_the_upright_size_the_format_and_the_digest() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(quarters(), "JPEG", exif=exif)
    info = image_info(data, decode_image(data))
    assert (info.width, info.height, info.format, info.sha256) == (
        16,
        32,
        "JPEG",
        hashlib.sha256(data).hexdigest(),
    )


@pytest.mark.parametrize("size", [96, 224])
@pytest.mark.parametrize("photograph", ["chelsea", "rocket"])
def test_pixels_are_within_a_level_of_open_clips_own_transform(photograph: str, size: int) -> None:
    image = Image.fromarray(getattr(skimage.data, photograph)())
    expected = Compose([Resize(size, interpolation=InterpolationMode.BICUBIC), CenterCrop(size)])(image)
    found = to_pixels(image, size)
    difference = (255 * found - torch.from_numpy(numpy.array(expected)).permute(2, 0, 1)).abs()
    assert difference.max() < 1.01
    assert difference.mean() < 1e-3


@pytest.mark.parametrize(
    ("width", "height"),
    [(32, 32), (33, 32), (32, 33), (1, 1), (5, 7), (64, 64), (500, 33), (31, 3000), (16384, 1), (1, 16384)],
)
def test_pixels_have_one_shape_range_and_lattice(width: int, height: int) -> None:
    pixels = to_pixels(Image.fromarray(noise(width, height)), 32)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.float32)
    assert torch.equal(pixels, (pixels * 255).round() / 255)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def test_the_centre_is_kept() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("lime", (100, 0, 200, 100))
    assert torch.equal(to_pixels(wide, 20)[1, :, 2:-2], torch.ones(20, 16))


@pytest.mark.parametrize("size", [32, 96, 224])
def test_lattice_pixels_survive_the_png_exactly(size: int) -> None:
    pixels = torch.from_numpy(noise(size, size)).permute(2, 0, 1).float() / 255
    assert torch.equal(load_pixels(pixels_to_png(pixels), size), pixels)


def test_a_png_of_other_pixels_holds_the_nearest_levels() -> None:
    pixels = (
        torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 1.2, -0.3, 127.49 / 255])
        .expand(3, 8, 8)
        .contiguous()
    )
    found = load_pixels(pixels_to_png(pixels), 8)
    assert (found[0, 0] * 255).round().tolist() == [0, 0, 1, 255, 255, 255, 0, 127]


def test_only_one_picture_becomes_a_png() -> None:
    with pytest.raises(InvalidInput, match=r"\[3, H, W\]"):
        pixels_to_png(torch.zeros(2, 3, 8, 8))


def test_limits_are_the_callers() -> None:
    data = saved(quarters())
    assert decode_image(data, limits=ImageLimits(max_bytes=len(data), max_pixels=512, max_side=32)).size == (
        32,
        16,
    )


def test_a_small_picture_takes_less_than_a_millisecond() -> None:
    data = saved(Image.fromarray(noise(64, 64)), "JPEG")
    took: list[float] = []
    for _ in range(50):
        start = time.perf_counter()
        load_pixels(data, 64)
        took.append(time.perf_counter() - start)
    assert min(took) < 1e-3
