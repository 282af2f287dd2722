"""EXIF turns a picture and XMP never does, in every format and whether there is an EXIF block or not."""

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from robustclip.images import decode_image, load_pixels
from robustclip.images.orientation import orientation_of

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def written(format: str, *, xmp: bool, exif: dict[int, Any] | None) -> bytes:
    """32 x 16, red left and blue right."""
    picture = Image.new("RGB", (32, 16), "blue")
    picture.paste("red", (0, 0, 16, 16))
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    if exif is not None:
        block = Image.Exif()
        block.update(exif)
        options["exif"] = block.tobytes()
    if xmp and format == "PNG":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    elif xmp:
        options["xmp"] = XMP
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("exif", [None, {0x010F: "Maker"}, {0x0112: 1}])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_xmp_alone_turns_nothing(format: str, exif: dict[int, Any] | None) -> None:
    data = written(format, xmp=True, exif=exif)
    assert b"tiff:Orientation" in data
    assert decode_image(data).size == (32, 16)
    assert load_pixels(Image.open(io.BytesIO(data)), 16).equal(load_pixels(data, 16))


@pytest.mark.parametrize("xmp", [False, True])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_turns_whatever_xmp_says(format: str, xmp: bool) -> None:
    data = written(format, xmp=xmp, exif={0x0112: 8})
    image = decode_image(data)
    assert image.size == (16, 32)
    red, _, blue = image.getpixel((8, 28))  # pyright: ignore[reportGeneralTypeIssues]
    assert red > blue
    assert load_pixels(Image.open(io.BytesIO(data)), 16).equal(load_pixels(data, 16))


def block(order: str, entries: list[tuple[int, int, int, bytes]], count: int | None = None) -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(
        f"{order}IH", 8, len(entries) if count is None else count
    )
    return head + b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)


def test_orientation_is_read_in_both_byte_orders_and_rubbish_is_upright() -> None:
    for order in "<>":
        short = struct.pack(f"{order}HH", 6, 0)
        assert orientation_of(block(order, [(0x0112, 3, 1, short)])) == 6
        assert (
            orientation_of(b"Exif\0\0" + block(order, [(0x010F, 2, 4, b"abc\0"), (0x0112, 3, 1, short)])) == 6
        )
        assert orientation_of(block(order, [(0x0112, 4, 1, struct.pack(f"{order}I", 3))])) == 3
        assert orientation_of(block(order, [(0x0112, 3, 2, short)])) == 1
        assert orientation_of(block(order, [(0x0112, 5, 1, short)])) == 1
        assert orientation_of(block(order, [], count=65535)) == 1
    for junk in (b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"nonsense" * 9):
        assert orientation_of(junk) == 1


def test_a_block_whose_entries_share_half_a_megabyte_costs_nothing() -> None:
    shared = block(">", [(tag, 7, 300_000, struct.pack(">I", 0)) for tag in range(0x200, 0x200 + 20_000)])
    exif = b"eXIf" + shared + bytes(300_000)
    data = written("PNG", xmp=False, exif=None)
    chunk = struct.pack(">I", len(exif) - 4) + exif + struct.pack(">I", zlib.crc32(exif))
    assert decode_image(data[:33] + chunk + data[33:]).size == (32, 16)
