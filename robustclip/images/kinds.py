"""What bytes are, by their first bytes alone; the sender's name for them is ignored."""

from typing import NamedTuple

from robustclip.errors import ImageFormatRefused, ImageRefused

_HEAD = 4096  # bytes that are looked at


class _Refused(NamedTuple):
    """A kind of file that is not decoded, and what its sender can do."""

    name: str
    help: str = "Save it as JPEG or PNG first."


_SVG = _Refused("SVG, a drawing", "Render it to PNG first.")
_JPEG_XL, _JPEG_2000 = _Refused("JPEG XL"), _Refused("JPEG 2000")
_TIFF = _Refused("TIFF (or a camera's raw file)", "Export it as JPEG or PNG first.")
_PAGE = _Refused("a web page", "Send the picture itself; a download may have brought an error page.")
_BEGINNINGS: tuple[tuple[bytes, _Refused], ...] = (
    (b"GIF87a", _Refused("GIF", "Save one frame of it as PNG first.")),
    (b"GIF89a", _Refused("GIF", "Save one frame of it as PNG first.")),
    (b"II*\0", _TIFF),
    (b"MM\0*", _TIFF),
    (b"II+\0", _TIFF),
    (b"MM\0+", _TIFF),
    (b"\xff\x0a", _JPEG_XL),
    (b"\0\0\0\x0cJXL ", _JPEG_XL),
    (b"\0\0\0\x0cjP  ", _JPEG_2000),
    (b"\xff\x4f\xff\x51", _JPEG_2000),
    (b"8BPS", _Refused("PSD (Photoshop)", "Export it as JPEG or PNG first.")),
    (b"%PDF-", _Refused("PDF", "Export the page as PNG first.")),
    (b"%!PS", _Refused("PostScript", "Render it to PNG first.")),
    (b"\0\0\1\0", _Refused("ICO", "Save one of its pictures as PNG first.")),
    (b"\0\0\2\0", _Refused("CUR", "Save one of its pictures as PNG first.")),
    (b"PK\3\4", _Refused("a ZIP archive", "Unpack it and send one picture.")),
    (b"BM", _Refused("BMP")),
)
# ISO base media files (ISO/IEC 14496-12) name their brands in a first box `ftyp`.
_BRANDS: tuple[tuple[frozenset[bytes], _Refused], ...] = (
    (frozenset({b"avif", b"avis"}), _Refused("AVIF")),
    (
        frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}),
        _Refused(
            "HEIC", "Save it as JPEG first; an iPhone takes JPEG with Camera, Formats, Most Compatible."
        ),
    ),
)
_VIDEO = _Refused("a video (MP4 or QuickTime)", "Send one of its frames as JPEG or PNG.")


def kind_of(data: bytes) -> str:
    """JPEG, PNG or WebP. Raises ImageRefused for no bytes, ImageFormatRefused with another kind's name."""
    if not data:
        raise ImageRefused(
            "expected a picture, found no bytes.",
            field="image",
            help="Send the content of a JPEG, PNG or WebP file.",
        )
    if (kind := _taken(data)) is not None:
        return kind
    other = _other(data[:_HEAD]) or _Refused(f"bytes that begin {data[:8]!r}", "Convert it first.")
    raise ImageFormatRefused(
        f"expected JPEG, PNG or WebP, found {other.name}.", field="image", help=other.help
    )


def is_known(data: bytes) -> bool:
    """Whether these are the bytes of a picture or of another kind of file that has a name here."""
    return (_taken(data) or _other(data[:_HEAD])) is not None


def _taken(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    return "WebP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def _other(head: bytes) -> _Refused | None:
    if head[4:8] == b"ftyp":
        size = min(max(int.from_bytes(head[:4]), 16), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, size, 4))}
        return next((refused for names, refused in _BRANDS if names & brands), _VIDEO)
    for beginning, refused in _BEGINNINGS:
        if head.startswith(beginning):
            return refused
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in text:
        return _SVG
    if text.startswith((b"<!doctype html", b"<html")):
        return _PAGE
    return None
