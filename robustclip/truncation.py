"""Whether encoded bytes held the whole picture that a decoder made of them. Pillow is content with less: it
leaves the rows of a PNG black that the file never brought, and libjpeg paints grey what is missing before a
JPEG's end mark. (libwebp refuses by itself.)
"""

import io
import zlib
from collections.abc import Generator

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # left, top, across, down
_ONE_PASS = ((0, 0, 1, 1),)
_INFLATE_BYTES = 2**20
_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = 0xDA
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_UNPAINTED = {127, 128}
_FILLER = bytes(range(1, 255)) * 8  # decodes to coefficients of some kind, and holds no marker


def png_is_whole(data: bytes, image: Image.Image) -> bool:
    """Whether the file ends as a PNG does and its compressed data hold every row. `image` is what Pillow made
    of them.
    """
    if not any(kind == b"IEND" for kind, _ in _png_chunks(data)):
        return False
    interlaced = data[28]
    if not interlaced and any(image.crop((0, image.height - 1, image.width, image.height)).tobytes()):
        return True  # rows come in order, and Pillow begins with black: the last one was there
    expected, found, inflater = _png_bytes(data), 0, zlib.decompressobj()
    for kind, place in _png_chunks(data):
        compressed = data[place] if kind == b"IDAT" else b""
        while compressed and found < expected:
            found += len(inflater.decompress(compressed, _INFLATE_BYTES))
            compressed = inflater.unconsumed_tail
    return found >= expected


def jpeg_is_whole(data: bytes, image: Image.Image) -> bool:
    """Whether the file has its end mark, and its compressed data go on until there.

    What libjpeg paints is mid grey, so a picture that ends in another colour is whole. For a grey one the
    data are lengthened: a decoder that had all it needs makes the same picture of them. Blind to a loss
    within the last block, and to lost scans of a progressive file, which only refine.
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
    """(kind, where its data are) of every chunk that is there as a whole, IEND the last."""
    position, kind = 8, b""
    while position + 12 <= len(data) and kind != b"IEND":
        kind, start = data[position + 4 : position + 8], position + 8
        end = start + int.from_bytes(data[position : position + 4])
        if end + 4 <= len(data):
            yield kind, slice(start, end)
        position = end + 4


def _png_bytes(data: bytes) -> int:
    """How many bytes the rows of all passes have together, by IHDR: each row is led by the number of its
    filter.
    """
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    bits, total = data[24] * _PNG_CHANNELS[data[25]], 0
    for left, top, across, down in _ADAM7 if data[28] else _ONE_PASS:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _jpeg_scan(data: bytes) -> int:
    """Where the compressed data of the first scan begin: behind the headers, which may hold a thumbnail with
    an end mark of its own.
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
