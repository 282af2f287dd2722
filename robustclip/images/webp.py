"""WebP: the chunks of its RIFF container (RFC 9649, section 2), read before libwebp is called."""

import io
import struct

from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from robustclip.errors import ImageFormatRefused, ImageRefused
from robustclip.images.encoded import Encoded, damaged, too_costly
from robustclip.images.layers import opaque

_CHUNKS = 256  # a still picture has fewer than ten


def read_webp(data: bytes) -> Encoded:
    """Raises ImageFormatRefused for an animation, ImageTooCostly for more chunks than a picture has."""
    width, height = _canvas(data)
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    position, chunks, frames, exif = 12, 0, 0, b""
    while position + 8 <= end:
        name, size = (
            data[position : position + 4],
            int.from_bytes(data[position + 4 : position + 8], "little"),
        )
        chunks, frames = chunks + 1, frames + (name == b"ANMF")
        if frames > 1:
            raise ImageFormatRefused(
                "expected one picture, found an animation.", field="image", help="Send one of its frames."
            )
        if chunks > _CHUNKS:
            raise too_costly(f"at most {_CHUNKS} chunks in a WebP file", "more")
        if name == b"EXIF" and not exif:
            exif = data[position + 8 : position + 8 + size]
        position += 8 + size + size % 2

    def decode() -> Image.Image:
        image = WebPImageFile(io.BytesIO(data))
        if image.size != (width, height):
            raise damaged("WebP", "its chunks disagree about its size")
        return opaque(image)

    return Encoded(width, height, exif, decode)


def _canvas(data: bytes) -> tuple[int, int]:
    """(width, height) from the first chunk."""
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
