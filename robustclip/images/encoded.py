"""What is read of encoded bytes before a decoder is called: size and turn of the picture, decoder's input.

The reader of each format takes a bounded number of steps. Decoders get no metadata: no bomb in a comment, a
text or an EXIF block, nor a million of them, can cost anything there.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from robustclip.errors import ImageRefused, ImageTooCostly


@dataclass(frozen=True)
class Encoded:
    """A picture that is not decoded yet. `exif` is a TIFF block or empty.

    `decode` makes RGB of it, not turned. It raises ImageRefused where data are missing, and whatever Pillow
    raises for damaged data.
    """

    width: int
    height: int
    exif: bytes
    decode: Callable[[], Image.Image]


def damaged(name: str, reason: str) -> ImageRefused:
    return ImageRefused(
        f"this {name} file is truncated or damaged ({reason}).",
        field="image",
        help="Save or send it again.",
    )


def ended_early(name: str) -> ImageRefused:
    return ImageRefused(
        f"this {name} file ends before its picture does.", field="image", help="Save or send it again."
    )


def too_costly(expected: str, found: str) -> ImageTooCostly:
    return ImageTooCostly(
        f"expected {expected}, found {found}.",
        field="image",
        help="Save it again with an ordinary program: no camera or editor writes such files.",
    )
