"""Untrusted bytes to an RGB picture to pixels, and back to PNG. Training, classification and probes share it.

Checks run in order of cost: size in bytes, magic bytes, then what headers and markers say: width and height,
frames, chunks, scans. Only then is a decoder called, and with the picture alone, without its metadata.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from robustclip.errors import ImageRefused, ImageTooManyBytes, ImageTooManyPixels, InvalidInput
from robustclip.images.encoded import Encoded, damaged
from robustclip.images.jpeg import read_jpeg
from robustclip.images.kinds import kind_of
from robustclip.images.layers import opaque
from robustclip.images.orientation import upright
from robustclip.images.png import read_png
from robustclip.images.webp import read_webp
from robustclip.preprocessing import Preprocessing, to_pixels
from robustclip.types import Pixels

_MEGA = 10**6


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


_READERS: dict[str, Callable[[bytes], Encoded]] = {"JPEG": read_jpeg, "PNG": read_png, "WebP": read_webp}


def decode_image(data: bytes, *, limits: ImageLimits = LIMITS) -> Image.Image:
    """The upright RGB picture in JPEG, PNG or WebP bytes.

    16-bit values keep their upper 8 bits; palettes and CMYK are converted without color profiles; transparent
    pixels are laid over white. EXIF turns the picture; all other metadata is ignored. Raises ImageRefused
    (empty, truncated, damaged), ImageFormatRefused (another format, an animation), ImageTooManyBytes,
    ImageTooManyPixels, ImageTooCostly (scans, segments or chunks without end).
    """
    if len(data) > limits.max_bytes:
        raise ImageTooManyBytes(
            f"expected at most {limits.max_bytes} bytes, found {len(data)}.",
            field="image",
            help="Send a smaller picture.",
        )
    kind = kind_of(data)
    try:
        encoded = _READERS[kind](data)
        _check_size(encoded.width, encoded.height, limits)
        return upright(encoded.decode(), encoded.exif)
    except (MemoryError, ImageRefused):
        raise
    except Exception as error:  # for damaged data Pillow raises SyntaxError, struct.error, IndexError, ...
        raise damaged(kind, str(error)) from error


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
        return to_pixels(upright(opaque(picture), picture.info.get("exif", b"")), preprocessing)
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
    return ImageInfo(image.width, image.height, kind_of(data), hashlib.sha256(data).hexdigest())


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
