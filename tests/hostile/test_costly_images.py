"""Small JPEG and WebP files that ask for much work are refused by name before a decoder is called.

Ordinary ones are decoded once. PNG's kinds are in tests/robustclip/images/test_png.py.
"""

import io
import struct
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image, ImageFile
from prompt_sets import learned_set
from scan_bombs import progressive, segment

from prompts_store.store import PromptStore
from robustclip.cli import main
from robustclip.errors import ImageRefused, ImageTooCostly
from robustclip.images import decode_image
from robustclip.models.clip import Clip


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An entry for every call of Pillow's JPEG decoder."""
    called: list[str] = []
    real = Image._getdecoder  # pyright: ignore[reportPrivateUsage]

    def counted(mode: str, name: str, *arguments: Any) -> object:
        called.extend([name] if name == "jpeg" else [])
        return real(mode, name, *arguments)

    monkeypatch.setattr(Image, "_getdecoder", counted)
    monkeypatch.setattr(ImageFile.Image, "_getdecoder", counted)
    return called


def saved(picture: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "scans", "options"),
    [
        (7000, 7000, 500, {}),
        (16384, 3000, 40, {}),
        (4000, 4000, 60, {}),
        (1500, 1500, 100, {}),
        (7000, 7000, 200, {"refine": True}),
        (4000, 4000, 200, {"components": 3}),
        (4000, 4000, 300, {"components": 4, "refine": True}),
        (64, 64, 5000, {}),
    ],
)
def test_a_scan_bomb_is_refused_before_the_decoder_is_called(
    decodings: list[str], width: int, height: int, scans: int, options: dict[str, Any]
) -> None:
    data = progressive(width, height, scans, **options)
    assert len(data) < 2 * 2**20
    start = time.process_time()
    with pytest.raises(ImageTooCostly, match=r"scans|segments"):
        decode_image(data)
    assert time.process_time() - start < 0.25
    assert decodings == []


def test_scans_that_hide_behind_markers_are_counted(decodings: list[str]) -> None:
    """A reserved marker with a false length, a comment and a filled marker before each scan."""
    data = progressive(5000, 5000, 100)
    first = data.index(b"\xff\xda")
    for hidden in (
        b"\xff\x02\xff\xff",
        b"\xff\x01",
        segment(0xFE, b"\xff\xd9"),
        b"\xff\xff\xff",
        b"\xff\xd3junk",
    ):
        with pytest.raises(ImageTooCostly, match="scans"):
            decode_image(data[:first] + data[first:].replace(b"\xff\xda", hidden + b"\xff\xda"))
    assert decodings == []


@pytest.mark.parametrize("scans", [1, 10, 20])
@pytest.mark.parametrize("components", [1, 3, 4])
def test_a_progressive_picture_of_twenty_scans_is_taken(
    decodings: list[str], scans: int, components: int
) -> None:
    data = progressive(1200, 900, max(scans, components), components=components)
    assert decode_image(data).size == (1200, 900)
    assert decodings == ["jpeg"]


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_large_progressive_photograph_is_taken_and_decoded_once(decodings: list[str], mode: str) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=numpy.uint8)
    photograph = Image.fromarray(noise).resize((6000, 4000), Image.Resampling.BILINEAR).convert(mode)
    data = saved(photograph, progressive=True, subsampling=0)
    assert data.count(b"\xff\xda") >= 6
    assert decode_image(data).size == (6000, 4000)
    assert decodings == ["jpeg"]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_picture_that_ends_grey_is_decoded_once(decodings: list[str], progressive: bool) -> None:
    data = saved(Image.new("RGB", (300, 200), (128, 128, 128)), progressive=progressive)
    assert decode_image(data).size == (300, 200)
    assert decodings == ["jpeg"]


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_picture_that_was_cut_before_its_grey_end_is_refused(
    decodings: list[str], mode: str, options: dict[str, Any], share: float
) -> None:
    noise = numpy.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=numpy.uint8)
    data = saved(Image.fromarray(noise).convert(mode), quality=90, **options)
    with pytest.raises(ImageRefused, match="ends before its picture does"):
        decode_image(data[: int(len(data) * share)] + b"\xff\xd9")
    assert decodings == ["jpeg"]


def test_segments_tables_and_filling_without_end_are_refused_before_the_decoder(decodings: list[str]) -> None:
    data = saved(Image.new("RGB", (64, 64), "red"))
    quantization = segment(0xDB, (b"\0" + bytes([1] * 64)) * 1000)
    for more in (
        segment(0xFE, b"") * 4_000_000,
        segment(0xEF, b"x") * 2_000_000,
        quantization * 250,
        b"\xff" * 10_000_000,
    ):
        start = time.process_time()
        with pytest.raises(ImageTooCostly):
            decode_image(data[:2] + more + data[2:])
        assert time.process_time() - start < 1
    with pytest.raises(ImageTooCostly):
        decode_image(data[:-2] + segment(0xFE, b"") * 4_000_000 + data[-2:])
    assert decodings == []


def test_metadata_costs_nothing_and_changes_nothing() -> None:
    data = saved(Image.new("RGB", (64, 64), "red"))
    blocks = segment(0xE1, b"Exif\0\0" + bytes(5000)) * 3000 + segment(0xFE, b"hello") * 500
    start = time.process_time()
    found = decode_image(data[:2] + blocks + b"\xff" * 100 + data[2:])
    assert time.process_time() - start < 0.25
    assert numpy.array_equal(numpy.asarray(found), numpy.asarray(decode_image(data)))


def test_chunks_of_webp_without_end_are_refused_before_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    body = saved(Image.new("RGB", (64, 64), "red"), "WEBP", exif=b"MM\0*" + bytes(20))[12:]
    body += (b"JUNK" + struct.pack("<I", 0)) * 1_000_000
    monkeypatch.setattr("robustclip.images.webp.WebPImageFile", None)  # would fail if it was called
    with pytest.raises(ImageTooCostly, match="chunks"):
        decode_image(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)


def test_the_command_line_refuses_a_scan_bomb_by_name(
    tmp_path: Path, tiny: Clip, capsys: pytest.CaptureFixture[str]
) -> None:
    PromptStore(tmp_path).publish(learned_set(tiny, name="own"), activate=True)
    file = tmp_path / "bomb.jpg"
    file.write_bytes(progressive(7000, 7000, 500))
    asked = [str(file), "--labels", "cat,dog", "--backbone", "tiny", "--store", str(tmp_path)]
    assert main(["classify", *asked, "--prompt-set", "own"]) == 2
    assert "501 scans" in capsys.readouterr().err
