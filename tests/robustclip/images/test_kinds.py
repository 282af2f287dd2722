import pytest

from robustclip.errors import ImageFormatRefused
from robustclip.images import decode_image
from robustclip.images.kinds import is_known


def box(*brands: bytes) -> bytes:
    return (16 + 4 * len(brands[1:])).to_bytes(4) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])


KINDS = [
    ("HEIC", box(b"heic", b"mif1", b"heic")),
    ("HEIC", box(b"mif1", b"heic")),
    ("AVIF", box(b"avif", b"mif1", b"miaf")),
    ("AVIF", box(b"mif1", b"miaf", b"avif")),
    ("video", box(b"isom", b"mp42")),
    ("video", box(b"qt  ")),
    ("TIFF", b"II*\0\x08\0\0\0"),
    ("TIFF", b"MM\0*\0\0\0\x08"),
    ("JPEG XL", b"\xff\x0a\x00"),
    ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("GIF", b"GIF89a"),
    ("BMP", b"BM\x36\0\0\0"),
    ("ICO", b"\0\0\1\0\1\0"),
    ("PSD", b"8BPS\0\1"),
    ("PDF", b"%PDF-1.7"),
    ("SVG", b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn --><svg xmlns="http://www.w3.org/2000/svg"/>'),
    ("web page", b"\n<!DOCTYPE html><html>"),
]


@pytest.mark.parametrize(("name", "head"), KINDS)
def test_other_kinds_are_refused_by_name_with_what_to_do(name: str, head: bytes) -> None:
    for data in (head, head + bytes(500)):
        assert is_known(data)
        with pytest.raises(ImageFormatRefused, match=name) as refused:
            decode_image(data)
        assert "b'" not in refused.value.message
        assert refused.value.help


def test_what_has_no_name_shows_its_first_bytes() -> None:
    assert not is_known(b'{"labels": []}')
    with pytest.raises(ImageFormatRefused, match="begin b'GET / HT'"):
        decode_image(b"GET / HTTP/1.1")
