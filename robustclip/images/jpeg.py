"""JPEG: its markers, read before libjpeg is called; what its scans cost; whether the picture has its end.

Sections are of ITU-T T.81 (1992). A progressive file may repeat a short scan that changes nothing; each time
the decoder visits the whole picture: 360 kB can ask for half a minute.
"""

import io
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from robustclip.images.encoded import Encoded, damaged, ended_early, too_costly
from robustclip.images.layers import opaque

_SEGMENTS = 4096  # 20 MiB of the longest are 320
_FILL_BYTES = 2**16
_TABLE_BYTES = 2**17  # what the decoder gets before the first scan; in common files below 5 kB
# A scan visits all blocks of its components. Files of photographs have 10 to 20 scans, most of one component:
# they visit as many samples as the largest component has 8 to 26 times. Small pictures may have more.
_VISITS = 32
_FREE_SAMPLES = 2**24
_DHT, _DAC, _DQT, _DRI, _SOS, _END = 0xC4, 0xCC, 0xDB, 0xDD, 0xDA, 0xD9
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_COLOURS = {_APP0: b"JFIF\0", _APP14: b"Adobe"}  # how the components become colours
_FRAMES = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, _DAC}
_TABLES = {_DHT, _DAC, _DQT, _DRI, *_FRAMES}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_ONE_SCAN_IN_ROWS = {0xC0, 0xC1}  # sequential with Huffman codes
# Without a length, or unknown: where libjpeg meets one and goes on, it goes on right behind it.
_BARE = {*range(0xC0), 0xC8, 0xD8, *range(0xF0, 0xFE)}
# In compressed data FF is written FF 00, restarts are FF D0 to FF D7; any number of FF may fill up (B.1.1).
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_BYTES = b"\xff\xd9"
_PADDING = bytes(8)  # as many bytes as libjpeg looks ahead
_UNPAINTED = {127, 128}


class _Component(NamedTuple):
    number: int
    across: int  # sampling factors
    down: int


class _Frame(NamedTuple):
    """The frame header (B.2.2)."""

    marker: int
    width: int
    height: int
    components: tuple[_Component, ...]

    def visited(self, numbers: bytes) -> int:
        """Samples that a scan of these components visits, in whole blocks (A.2)."""
        width = 8 * max(part.across for part in self.components)
        height = 8 * max(part.down for part in self.components)
        parts = [part for number in numbers for part in self.components if part.number == number]
        if len(parts) > 1:
            blocks = sum(part.across * part.down for part in parts)
            return 64 * blocks * -(-self.width // width) * -(-self.height // height)
        return sum(
            64 * -(-self.width * part.across // width) * -(-self.height * part.down // height)
            for part in parts
        )

    @property
    def largest(self) -> int:
        return max(self.visited(bytes([part.number])) for part in self.components)


class _Scan(NamedTuple):
    """What of a scan header (B.2.3) matters here."""

    numbers: bytes  # of its components
    starts_dc: bool  # progressive: the first look at the blocks' means, without which they are grey


@dataclass
class _Walk:
    """What the walk over the markers has met."""

    tables: list[bytes] = field(default_factory=lambda: [b"\xff\xd8"])  # what the decoder gets before scans
    frame: _Frame | None = None
    exif: bytes = b""
    scans: list[_Scan] = field(default_factory=list[_Scan])
    compressed: bytes = b""  # from the first scan to the end marker
    ended: bool = False


def read_jpeg(data: bytes) -> Encoded:
    """Raises ImageRefused for a file without a picture, ImageTooCostly for more segments or tables than a
    picture needs; `decode` raises it for more scans.

    The decoder gets tables, the frame, how colours are to be read, and all from the first scan on.
    """
    walk = _walked(data)
    frame = walk.frame
    if frame is None or not walk.scans:
        raise ended_early("JPEG")

    def decode() -> Image.Image:
        most = _FREE_SAMPLES + _VISITS * frame.largest
        if sum(frame.visited(scan.numbers) for scan in walk.scans) > most:
            raise too_costly(
                f"scans that visit its {frame.width} x {frame.height} pixels at most "
                f"{most // frame.largest} times",
                f"{len(walk.scans)} scans",
            )
        if not walk.ended or {part.number for part in frame.components} - {
            *b"".join(scan.numbers for scan in walk.scans)
        }:
            raise ended_early("JPEG")
        in_rows = frame.marker in _ONE_SCAN_IN_ROWS and len(walk.scans) == 1
        encoded = b"".join([*walk.tables, walk.compressed])
        image = _InRows(encoded) if in_rows else JpegImageFile(io.BytesIO(encoded + _END_BYTES))
        image.load()
        if _ends_grey(image) and (
            image.cut
            if isinstance(image, _InRows)
            else frame.marker in _PROGRESSIVE and walk.scans[-1].starts_dc
        ):
            raise ended_early("JPEG")
        return opaque(image)

    return Encoded(frame.width, frame.height, walk.exif, decode)


class _InRows(JpegImageFile):
    """A picture that is painted while its one scan is read; whether something was `cut` from it.

    libjpeg paints mid grey what is missing before the end marker. So the marker is held back until all other
    bytes are read: if the last pixel is not painted by then, something is missing. A loss of the last eight
    bytes is not noticed.
    """

    cut = False

    def __init__(self, encoded: bytes) -> None:
        self._endings = iter((_PADDING, _END_BYTES))
        super().__init__(io.BytesIO(encoded))

    def load_read(self, read_bytes: int) -> bytes:
        assert self.fp is not None
        if piece := self.fp.read(read_bytes):
            return piece
        ending = next(self._endings, b"")
        if ending == _END_BYTES:
            self.cut = not any(_last_pixel(self))
        return ending


def _last_pixel(image: ImageFile) -> tuple[int, ...]:
    """Of what is decoded by now: `Image.getpixel` would load the rest."""
    last = image.im.getpixel((image.width - 1, image.height - 1))
    return last if isinstance(last, tuple) else (last,)


def _ends_grey(image: ImageFile) -> bool:
    return set(_last_pixel(image)) <= _UNPAINTED


def _walked(data: bytes) -> _Walk:
    """All markers up to the end marker or the end of the data."""
    walk, position, start, table_bytes = _Walk(), 2, 0, 0
    for _ in range(_SEGMENTS):
        found = _MARKER.search(data, position)
        if found is None:
            return walk
        marker, before, position = data[found.end() - 1], position, found.end()
        if marker == _END:
            walk.ended = True
            walk.compressed = data[start : found.start()]
            return walk
        if not start and found.start() - before > _FILL_BYTES:
            raise too_costly(f"at most {_FILL_BYTES} bytes between the segments of a JPEG file", "more")
        if marker in _BARE:
            continue
        length = int.from_bytes(data[position : position + 2])
        content, position = data[position + 2 : position + length], position + length
        if length < 2 or position > len(data):
            return walk
        if marker in _FRAMES:
            if walk.frame is not None:
                raise damaged("JPEG", "it has two frame headers")
            walk.frame = _frame(marker, content)
        elif marker == _SOS:
            start = start or found.start()
            walk.scans.append(_scan(content))
        elif marker == _APP1 and content.startswith(b"Exif\0\0"):
            walk.exif = walk.exif or content
        colours = marker in _COLOURS and content.startswith(_COLOURS[marker])
        if not start and (marker in _TABLES or colours):
            walk.tables.append(data[found.start() : position])
            table_bytes += len(walk.tables[-1])
        if table_bytes > _TABLE_BYTES:
            raise too_costly(f"at most {_TABLE_BYTES} bytes of tables in a JPEG file", "more")
    raise too_costly(f"at most {_SEGMENTS} segments in a JPEG file", "more")


def _frame(marker: int, content: bytes) -> _Frame:
    count = content[5] if len(content) > 5 else 0
    parts = [content[at : at + 3] for at in range(6, 6 + 3 * count, 3)]
    components = tuple(_Component(part[0], part[1] >> 4, part[1] & 15) for part in parts if len(part) == 3)
    if not components or any(not (1 <= factor <= 4) for part in components for factor in part[1:]):
        raise damaged("JPEG", "its frame header is not valid")
    height, width = int.from_bytes(content[1:3]), int.from_bytes(content[3:5])
    return _Frame(marker, width, height, components)


def _scan(content: bytes) -> _Scan:
    count = content[0] if content else 0
    if len(content) < 4 + 2 * count:
        raise damaged("JPEG", "a scan header is not valid")
    first, precision = content[1 + 2 * count], content[3 + 2 * count]
    return _Scan(content[1 : 1 + 2 * count : 2], first == 0 and precision >> 4 == 0)
