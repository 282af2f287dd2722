"""Untrusted bytes to an RGB picture to pixels, and back to PNG. Training, classification and probes share it.

Checks run in order of cost: size in bytes, magic bytes, width and height in the header, number of frames.
Only then are pixels allocated.
"""

import hashlib
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from robustclip.errors import (
    ImageFormatRefused,
    ImageRefused,
    ImageTooManyBytes,
    ImageTooManyPixels,
    InvalidInput,
)
from robustclip.preprocessing import Preprocessing, to_pixels
from robustclip.truncation import jpeg_is_whole, png_is_whole
from robustclip.types import Pixels

_MEGA = 10**6
_ORIENTATION = 0x0112  # an EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageLimits:
    """The largest picture that is decoded: encoded bytes, pixels, length of a side."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50 * _MEGA
    max_side: int = 16_384


LIMITS = ImageLimits()


@dataclass(frozen=True)
class ImageInfo:
    """What an answer says about a picture: its upright size, its format, the digest of its bytes."""

    width: int
    height: int
    format: str
    sha256: str


@dataclass(frozen=True)
class _Format:
    """An image format.

    `open` reads only headers; Pillow's `Image.open` would also try other parsers and warn about large
    pictures. `is_whole` finds what Pillow accepts: data that end before the picture does.
    """

    name: str
    matches: Callable[[bytes], bool]
    open: Callable[[io.BytesIO], ImageFile]
    is_whole: Callable[[bytes, Image.Image], bool]


_FORMATS = (
    _Format("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), JpegImageFile, jpeg_is_whole),
    _Format("PNG", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImageFile, png_is_whole),
    _Format(
        "WebP",
        lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP",
        WebPImageFile,
        lambda data, image: True,
    ),
)


def decode_image(data: bytes, *, limits: ImageLimits = LIMITS) -> Image.Image:
    """The upright RGB picture in JPEG, PNG or WebP bytes.

    16-bit values keep their upper 8 bits; palettes and CMYK are converted without color profiles; transparent
    pixels are laid over white. EXIF turns the picture; all other metadata is ignored. Raises ImageRefused
    (empty, truncated, damaged), ImageFormatRefused (another format, an animation), ImageTooManyBytes,
    ImageTooManyPixels.
    """
    if len(data) > limits.max_bytes:
        raise ImageTooManyBytes(
            f"expected at most {limits.max_bytes} bytes, found {len(data)}.",
            field="image",
            help="Send a smaller picture.",
        )
    kind = _format_of(data)
    if kind.open is WebPImageFile:  # its decoder allocates the canvas when it opens
        _check_size(*_webp_canvas(data), limits)
    try:
        image = kind.open(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:  # on damaged headers Pillow raises SyntaxError, struct.error, IndexError, ...
        raise _damaged(kind, error) from error
    _check_size(*image.size, limits)
    if getattr(image, "n_frames", 1) > 1:
        raise ImageFormatRefused(
            "expected one picture, found an animation.", field="image", help="Send one of its frames."
        )
    try:
        image.load()
        if not kind.is_whole(data, image):
            raise ImageRefused(
                f"this {kind.name} file ends before its picture does.",
                field="image",
                help="Save or send it again.",
            )
        return _upright(_to_rgb(image), image)
    except (MemoryError, ImageRefused):
        raise
    except Exception as error:
        raise _damaged(kind, error) from error


def load_pixels(
    picture: bytes | str | Path | Image.Image,
    preprocessing: Preprocessing | int,
    *,
    limits: ImageLimits = LIMITS,
) -> Pixels:
    """[3, S, S] pixels of encoded bytes, of the file of that name, or of a PIL picture.

    preprocessing  `clip.preprocessing` of the CLIP that will see them; a size alone stands for OpenAI's way

    Raises as `decode_image`, and OSError for a file that can't be read.
    """
    if isinstance(picture, Image.Image):
        return to_pixels(_upright(_to_rgb(picture), picture), preprocessing)
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return to_pixels(decode_image(data, limits=limits), preprocessing)


def pixels_to_png(pixels: Pixels) -> bytes:
    """Lossless bytes of [3, H, W] pixels, rounded to multiples of 1/255, which decoding returns exactly."""
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise InvalidInput(f"expected pixels [3, H, W], found {list(pixels.shape)}.", field="pixels")
    levels = (pixels.detach().to("cpu", torch.float32) * 255).round().clamp(0, 255).to(torch.uint8)
    return to_png(levels)


def to_png(levels: Tensor) -> bytes:
    """Lossless bytes of [3, H, W] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def image_info(data: bytes, image: Image.Image) -> ImageInfo:
    """The facts of bytes and of the picture that `decode_image` made of them."""
    return ImageInfo(image.width, image.height, _format_of(data).name, hashlib.sha256(data).hexdigest())


def _format_of(data: bytes) -> _Format:
    """By magic bytes alone; the sender's name for it is ignored."""
    if not data:
        raise ImageRefused(
            "expected a picture, found no bytes.",
            field="image",
            help="Send the content of a JPEG, PNG or WebP file.",
        )
    for kind in _FORMATS:
        if kind.matches(data[:12]):
            return kind
    raise ImageFormatRefused(
        f"expected JPEG, PNG or WebP, found bytes that begin {data[:8]!r}.",
        field="image",
        help="Convert it first.",
    )


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageTooManyPixels(
            f"expected at most {limits.max_pixels / _MEGA:g} megapixels and {limits.max_side} a side, found "
            f"{width} x {height}.",
            field="image",
            help="Scale it down: the classifier sees a small square of it anyway.",
        )
    if min(width, height) < 1:
        raise ImageRefused(f"found a picture of {width} x {height} pixels.", field="image")


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """(width, height) from the first chunk of a WebP file."""
    chunk, body = data[12:16], data[20:30]
    if len(body) == 10:
        if chunk == b"VP8X":
            return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        if chunk == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if chunk == b"VP8 ":
            width, height = struct.unpack("<HH", body[6:10])
            return width & 0x3FFF, height & 0x3FFF
    raise ImageRefused(
        "this WebP file has no picture in its first chunk.", field="image", help="Save it again."
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255
        levels = numpy.asarray(image).astype(numpy.uint16)
        grey = Image.fromarray((levels >> 8).astype(numpy.uint8))
        hidden = image.info.get("transparency")
        if hidden is not None:
            grey.paste(255, mask=Image.fromarray(levels == hidden))
        return grey.convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image, source: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF block says. Unreadable blocks are common and are ignored."""
    if "exif" not in source.info:
        return image
    try:
        turn = _UPRIGHT.get(source.getexif().get(_ORIENTATION, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _damaged(kind: _Format, error: Exception) -> ImageRefused:
    return ImageRefused(
        f"this {kind.name} file is truncated or damaged ({error}).",
        field="image",
        help="Save or send it again.",
    )
