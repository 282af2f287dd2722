"""Whether encoded bytes hold the whole picture. Pillow also accepts less.

It leaves missing rows of a PNG black, and libjpeg fills in grey what is missing before a JPEG's end marker.
(libwebp refuses by itself.)
"""

import io
import zlib
from collections.abc import Generator

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Passes over the picture: first column, first row, step across, step down.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_ONE_PASS = ((0, 0, 1, 1),)
_INFLATE_BYTES = 2**20
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = 0xDA
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_UNPAINTED = {127, 128}
_FILLER = bytes(range(1, 255)) * 8  # decodes to some coefficients, and contains no marker


def png_is_whole(data: bytes, image: Image.Image) -> bool:
    """Whether the file ends as a PNG does and its compressed data hold every row of `image`."""
    if not any(kind == b"IEND" for kind, _ in _png_chunks(data)):
        return False
    interlaced = data[28]
    if not interlaced and any(image.crop((0, image.height - 1, image.width, image.height)).tobytes()):
        return True  # rows come in order and Pillow starts from black, so the last row was read
    expected, size, inflater = _png_bytes(data), 0, zlib.decompressobj()
    for kind, place in _png_chunks(data):
        compressed = data[place] if kind == b"IDAT" else b""
        while compressed and size < expected:
            size += len(inflater.decompress(compressed, _INFLATE_BYTES))
            compressed = inflater.unconsumed_tail
    return size >= expected


def jpeg_is_whole(data: bytes, image: Image.Image) -> bool:
    """Whether the file has its end marker, and its compressed data reach it.

    libjpeg fills in mid grey, so a picture that ends in another color is whole. For one that ends grey, bytes
    are added to the data: if the decoder had all it needed, the picture does not change. A loss within the
    last block is not noticed, nor lost scans of a progressive file, which only refine: libjpeg does not
    report either.
    """
    end = data.find(_JPEG_END, _jpeg_scan(data))
    if end < 0:
        return False
    last = image.getpixel((image.width - 1, image.height - 1))
    if not set(last if isinstance(last, tuple) else (last,)) <= _UNPAINTED:
        return True
    longer = JpegImageFile(io.BytesIO(data[:end] + _FILLER + data[end:]))
    return longer.tobytes() == image.tobytes()


def _png_chunks(data: bytes) -> Generator[tuple[bytes, slice]]:
    """(kind, place of its data) of every complete chunk, IEND the last."""
    position, kind = 8, b""
    while position + 12 <= len(data) and kind != b"IEND":
        kind, start = data[position + 4 : position + 8], position + 8
        end = start + int.from_bytes(data[position : position + 4])
        if end + 4 <= len(data):
            yield kind, slice(start, end)
        position = end + 4


def _png_bytes(data: bytes) -> int:
    """The number of bytes of all rows of all passes, by IHDR; each row begins with its filter's number."""
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    bits, total = data[24] * _PNG_CHANNELS[data[25]], 0
    for left, top, across, down in _ADAM7 if data[28] else _ONE_PASS:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _jpeg_scan(data: bytes) -> int:
    """Where the compressed data of the first scan begin.

    It comes after the headers, which may contain a thumbnail with an end marker.
    """
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF or data[position + 1] == 0xFF:  # padding
            position += 1
            continue
        marker = data[position + 1]
        position += 2 if marker in _JPEG_BARE else 2 + int.from_bytes(data[position + 2 : position + 4])
        if marker == _JPEG_SCAN:
            return position
    return len(data)
