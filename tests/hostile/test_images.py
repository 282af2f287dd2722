"""Pictures made to hurt: each is refused by name before it costs anything."""

import io
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as draw
from PIL import Image

from robustclip.errors import ImageFormatRefused, ImageRefused, ImageTooManyBytes, ImageTooManyPixels
from robustclip.images import LIMITS, ImageLimits, decode_image


def saved(format: str, size: int = 64, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=numpy.uint8)).save(
        buffer, format=format, **options
    )
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, between: bytes = b"") -> bytes:
    """A well-formed PNG that announces a size and brings one row."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + between
        + chunk(b"IDAT", zlib.compress(bytes(1 + 3 * min(width, 10**5))))
        + chunk(b"IEND", b"")
    )


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG with another size in its frame header."""
    data = bytearray(saved("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_canvas(width: int, height: int) -> bytes:
    """A WebP of the extended kind that announces a canvas."""
    body = b"\x00\x00\x00\x00" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = b"WEBPVP8X" + struct.pack("<I", 10) + body + saved("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, format=format, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


REFUSED: list[tuple[str, type[ImageRefused], Callable[[], bytes]]] = [
    ("nothing", ImageRefused, lambda: b""),
    ("a text", ImageFormatRefused, lambda: b"GIF? no, a text"),
    ("a GIF", ImageFormatRefused, lambda: saved("GIF")),
    ("a BMP", ImageFormatRefused, lambda: saved("BMP")),
    ("a TIFF", ImageFormatRefused, lambda: saved("TIFF")),
    ("an SVG", ImageFormatRefused, lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    ("PostScript", ImageFormatRefused, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    ("an animated PNG", ImageFormatRefused, lambda: animated("PNG")),
    ("an animated WebP", ImageFormatRefused, lambda: animated("WEBP")),
    ("a PNG of 60000 x 60000", ImageTooManyPixels, lambda: png_header(60000, 60000)),
    ("a PNG of 2^31 - 1 x 1", ImageTooManyPixels, lambda: png_header(2**31 - 1, 1)),
    ("a PNG of 16385 x 1", ImageTooManyPixels, lambda: png_header(16385, 1)),
    ("a PNG of 0 x 5", ImageRefused, lambda: png_header(0, 5)),
    ("a JPEG of 65500 x 65500", ImageTooManyPixels, lambda: jpeg_header(65500, 65500)),
    ("a WebP of 2^24 x 255", ImageTooManyPixels, lambda: webp_canvas(2**24, 255)),
    ("a WebP of 16000 x 16000", ImageTooManyPixels, lambda: webp_canvas(16000, 16000)),
    ("a WebP without a picture", ImageRefused, lambda: b"RIFF\x04\x00\x00\x00WEBP"),
    ("a WebP of junk", ImageRefused, lambda: b"RIFF\x04\x00\x00\x00WEBP" + bytes(100)),
    ("a PNG's magic alone", ImageRefused, lambda: b"\x89PNG\r\n\x1a\n"),
    ("a JPEG's magic alone", ImageRefused, lambda: b"\xff\xd8\xff\xe0"),
    (
        "text that inflates to 16 MiB",
        ImageRefused,
        lambda: png_header(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))),
    ),
]


@pytest.mark.parametrize(
    ("kind", "make"), [pytest.param(kind, make, id=name) for name, kind, make in REFUSED]
)
def test_hostile_picture_is_refused_by_name_and_at_once(
    kind: type[ImageRefused], make: Callable[[], bytes]
) -> None:
    data = make()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(ImageRefused) as refused:
        decode_image(data)
    assert type(refused.value) is kind
    assert refused.value.field == "image"
    assert time.process_time() - start < 0.25
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 1024  # KiB


def test_a_header_of_60000_squared_costs_less_than_50_milliseconds_and_no_memory() -> None:
    data = png_header(60000, 60000)
    took: list[float] = []
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        start = time.perf_counter()
        with pytest.raises(ImageTooManyPixels, match="60000 x 60000"):
            decode_image(data)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 8 * 1024


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("JPEG", {}),
    "fine JPEG": ("JPEG", {"quality": 95, "subsampling": 0}),
    "JPEG with restarts": ("JPEG", {"restart_marker_rows": 1}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_picture_is_refused_wherever_it_was_cut(form: str) -> None:
    data = saved(FORMS[form][0], **FORMS[form][1])
    for cut in (1, 2, 4, 12, 20, len(data) // 4, len(data) // 2, len(data) - 40, len(data) - 13):
        with pytest.raises(ImageRefused):
            decode_image(data[:-cut])


def ended_png(rows: int, *, size: int = 64, interlaced: bool = False, value: int = 200) -> bytes:
    """A PNG in perfect order, except that its compressed data stop after some rows of the first pass or the
    only one.
    """
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, int(interlaced)))
    row = bytes([0] + [value] * 3 * (size // 8 if interlaced else size))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row * rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("rows", "interlaced"), [(1, False), (32, False), (63, False), (1, True), (8, True)])
def test_a_png_whose_compressed_data_end_early_in_good_order_is_refused(rows: int, interlaced: bool) -> None:
    with pytest.raises(ImageRefused, match="ends before its picture does"):
        decode_image(ended_png(rows, interlaced=interlaced))


def test_a_png_that_is_black_below_is_a_picture() -> None:
    assert decode_image(ended_png(64, value=0)).size == (64, 64)
    assert decode_image(ended_png(64)).getpixel((63, 63)) == (200, 200, 200)
    for mode in ("1", "L", "P", "LA", "RGBA", "I;16"):
        buffer = io.BytesIO()
        Image.new(mode, (13, 7)).save(buffer, format="PNG")
        assert decode_image(buffer.getvalue()).size == (13, 7)


@pytest.mark.parametrize("form", ["JPEG", "fine JPEG", "JPEG with restarts"])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.97])
def test_a_jpeg_that_was_cut_and_ended_in_good_order_is_refused(form: str, share: float) -> None:
    data = saved(FORMS[form][0], 128, **FORMS[form][1])
    with pytest.raises(ImageRefused, match="ends before its picture does"):
        decode_image(data[: int(share * len(data))] + b"\xff\xd9")


def test_a_jpeg_padded_with_zeros_is_refused() -> None:
    data = saved("JPEG", quality=95, subsampling=0)
    for share in (0.6, 0.8, 0.95):
        with pytest.raises(ImageRefused):
            decode_image(data[: int(share * len(data))].ljust(len(data), b"\0"))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_mid_grey_below_is_a_picture(mode: str, progressive: bool) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (50, 40), 128 if mode == "L" else (128,) * len(mode)).save(
        buffer, format="JPEG", progressive=progressive
    )
    assert decode_image(buffer.getvalue()).size == (50, 40)


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.97])
def test_a_webp_that_was_cut_and_put_in_good_order_is_refused(options: dict[str, Any], share: float) -> None:
    data = bytearray(saved("WEBP", **options))
    del data[int(share * len(data)) // 2 * 2 :]
    data[4:8], data[16:20] = struct.pack("<I", len(data) - 8), struct.pack("<I", len(data) - 20)
    with pytest.raises(ImageRefused):
        decode_image(bytes(data))


def test_bytes_are_counted_before_anything_else() -> None:
    with pytest.raises(ImageTooManyBytes, match=str(LIMITS.max_bytes)):
        decode_image(bytes(LIMITS.max_bytes + 1))
    with pytest.raises(ImageTooManyPixels):
        decode_image(saved("PNG"), limits=ImageLimits(max_pixels=64 * 64 - 1))
    with pytest.raises(ImageTooManyPixels):
        decode_image(saved("PNG"), limits=ImageLimits(max_side=63))


def test_a_polyglot_is_its_picture_and_nothing_else() -> None:
    archive = io.BytesIO(saved("JPEG"))
    archive.seek(0, io.SEEK_END)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("payload.html", "<script>alert(1)</script>")
    assert zipfile.is_zipfile(archive)
    assert numpy.array_equal(
        numpy.asarray(decode_image(archive.getvalue())), numpy.asarray(decode_image(saved("JPEG")))
    )
    with pytest.raises(ImageFormatRefused):
        decode_image(b"GIF89a" + saved("PNG"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=draw.lists(
        draw.tuples(draw.floats(0, 1, exclude_max=True), draw.integers(0, 255)), min_size=1, max_size=12
    )
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_picture_is_a_picture_or_refused(format: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(saved(format, 24))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        image = decode_image(bytes(data), limits=ImageLimits(max_pixels=10**6))
    except ImageRefused:
        return
    assert image.mode == "RGB"
