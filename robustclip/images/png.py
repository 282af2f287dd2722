"""PNG: its chunks, read before Pillow is called; its transparent colour; whether every row is there.

Sections are of the PNG Specification, Third Edition (W3C, 2025).
"""

import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from robustclip.errors import ImageFormatRefused
from robustclip.images.encoded import Encoded, damaged, ended_early, too_costly
from robustclip.images.layers import opaque, strips

_CHUNKS = 2**15  # 20 MiB in the small pieces of 640 bytes
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PALETTE = 3
# Passes over the picture: first column, first row, step across, step down.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_ONE_PASS = ((0, 0, 1, 1),)
_INFLATE_BYTES = 2**20


@dataclass
class _Chunks:
    """What the walk over the chunks has met. `kept` is what the decoder gets."""

    kept: list[bytes]
    compressed: list[bytes] = field(default_factory=list[bytes])
    palette: bytes = b""
    key: bytes | None = None  # the content of tRNS
    exif: bytes = b""
    whole: bool = False


def read_png(data: bytes) -> Encoded:
    """Raises ImageRefused for a file without a header, ImageTooCostly for more chunks than a picture needs,
    ImageFormatRefused for an animation.

    The decoder gets IHDR, PLTE and IDAT. Inflating stops where the picture ends.
    """
    if data[8:16] != b"\0\0\0\x0dIHDR" or len(data) < 33:
        raise damaged("PNG", "it does not begin with a header")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    chunks = _walk(data)

    def decode() -> Image.Image:
        if not chunks.whole:
            raise ended_early("PNG")
        kept = b"".join(chunks.kept)
        image = PngImageFile(io.BytesIO(kept))
        image.load()
        if not _has_every_row(data, chunks.compressed, image):
            raise ended_early("PNG")
        if chunks.key is None or colour not in (0, 2, _PALETTE):
            return opaque(image)
        if colour == _PALETTE:
            _lay_palette_over_white(image, chunks.palette, chunks.key)
            return opaque(image)
        low = _low_bytes(kept) if (bits, colour) == (16, 2) else None
        return _without_key(image, low, _key_of(chunks.key, bits, colour), bits)

    return Encoded(width, height, chunks.exif, decode)


def _walk(data: bytes) -> _Chunks:
    """All chunks up to IEND. Those that are doubled or out of place are ignored (13.1)."""
    found = _Chunks([data[:8]])
    position, count, name = 8, 0, b""
    frames = 0
    while position + 12 <= len(data) and not found.whole:
        count, previous = count + 1, name
        if count > _CHUNKS:
            raise too_costly(f"at most {_CHUNKS} chunks in a PNG file", "more")
        name, start = data[position + 4 : position + 8], position + 8
        end = start + int.from_bytes(data[position : position + 4])
        if end + 4 > len(data):
            break
        first, content = not found.compressed, slice(start, end)
        keep = name == b"IEND" or (name == b"IHDR" and count == 1)
        match name:
            case b"PLTE" if first and not found.palette:
                found.palette, keep = data[content], True
            case b"IDAT" if first or previous == b"IDAT":
                found.compressed.append(data[content])
                keep = True
            case b"tRNS" if first and found.key is None:
                found.key = data[content]
            case b"eXIf" if not found.exif:
                found.exif = data[content]
            case b"acTL" if first:
                frames = int.from_bytes(data[content][:4])
            case b"fdAT" if frames:
                frames = 2
            case _:
                pass
        if frames > 1:
            raise ImageFormatRefused(
                "expected one picture, found an animation.", field="image", help="Send one of its frames."
            )
        if keep:
            found.kept.append(data[position : end + 4])
        found.whole = name == b"IEND"
        position = end + 4
    return found


def _key_of(content: bytes, bits: int, colour: int) -> tuple[int, ...]:
    """The transparent grey or colour in samples of the file; bits above its depth do not count (11.3.1.1)."""
    count = _CHANNELS[colour]
    if len(content) < 2 * count:
        raise damaged("PNG", "its transparent colour is cut")
    return tuple(sample & (1 << bits) - 1 for sample in struct.unpack_from(f">{count}H", content))


def _without_key(image: Image.Image, low: Image.Image | None, key: tuple[int, ...], bits: int) -> Image.Image:
    """RGB in which pixels of exactly the key's samples are white.

    Pillow spreads samples of 1, 2 and 4 bits over 0 to 255. Of 16-bit colours it reads the upper bytes; `low`
    has the others.
    """
    result = image if image.mode == "RGB" else Image.new("RGB", image.size)
    spread = 255 // ((1 << bits) - 1) if bits < 8 else 1
    for box in strips(*image.size):
        strip = image.crop(box)
        if low is not None:
            hidden = _equal(strip, [sample >> 8 for sample in key])
            hidden &= _equal(low.crop(box), [sample & 255 for sample in key])
        else:
            hidden = _equal(strip, [sample * spread for sample in key])
        shown = opaque(strip)
        shown.paste("white", mask=Image.fromarray(hidden))
        result.paste(shown, box)
    return result


def _equal(strip: Image.Image, levels: list[int]) -> "numpy.ndarray[Any, numpy.dtype[numpy.bool_]]":
    """[H, W] whether all channels of a pixel have these levels."""
    found = numpy.atleast_3d(numpy.asarray(strip.convert("L") if strip.mode == "1" else strip))
    return numpy.logical_and.reduce([found[..., channel] == level for channel, level in enumerate(levels)])


def _low_bytes(data: bytes) -> Image.Image:
    """The lower bytes of a 16-bit RGB file: Pillow reads as little-endian what is big-endian."""
    image = PngImageFile(io.BytesIO(data))
    image.tile = [image.tile[0]._replace(args="RGB;16L")]
    image.load()
    return image


def _lay_palette_over_white(image: Image.Image, palette: bytes, alphas: bytes) -> None:
    """The alpha of the palette's entries; entries that tRNS does not reach are opaque (11.3.1.1)."""
    count = len(palette) // 3
    if not count:
        raise damaged("PNG", "it has no palette")
    colours = Image.frombytes("RGB", (count, 1), palette[: 3 * count])
    colours.putalpha(Image.frombytes("L", (count, 1), alphas[:count].ljust(count, b"\xff")))
    image.putpalette(opaque(colours).tobytes())


def _has_every_row(data: bytes, compressed: list[bytes], image: Image.Image) -> bool:
    """Whether the compressed data hold every row. Pillow also takes less, and leaves missing rows black."""
    interlaced = data[28]
    if not interlaced and any(image.crop((0, image.height - 1, image.width, image.height)).tobytes()):
        return True  # rows come in order and Pillow starts from black, so the last row was read
    expected, size, inflater = _inflated_bytes(data), 0, zlib.decompressobj()
    for piece in compressed:
        while piece and size < expected:
            size += len(inflater.decompress(piece, _INFLATE_BYTES))
            piece = inflater.unconsumed_tail
    return size >= expected


def _inflated_bytes(data: bytes) -> int:
    """The number of bytes of all rows of all passes, by IHDR; each row begins with its filter's number."""
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    bits, total = data[24] * _CHANNELS[data[25]], 0
    for left, top, across, down in _ADAM7 if data[28] else _ONE_PASS:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
