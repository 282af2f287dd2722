"""Transparent colours of PNG, of every depth: what the specification says, worked out from the samples."""

import struct
import zlib
from typing import Any

import numpy
import pytest

from robustclip.errors import ImageFormatRefused, ImageRefused, ImageTooCostly
from robustclip.images import decode_image

Array = numpy.ndarray[Any, Any]
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
GREY, RGB, PALETTE = 0, 2, 3
FORMS = [(1, GREY), (2, GREY), (4, GREY), (8, GREY), (16, GREY), (8, RGB), (16, RGB)]


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def rows(samples: Array, bits: int) -> bytes:
    """Unfiltered rows of [H, W, C] samples."""
    packed = b""
    for row in samples.reshape(samples.shape[0], -1):
        if bits == 16:
            packed += b"\0" + row.astype(">u2").tobytes()
        else:
            digits = numpy.unpackbits(row.astype(numpy.uint8)[:, None], axis=1)[:, -bits:]
            packed += b"\0" + numpy.packbits(digits.reshape(-1)).tobytes()
    return packed


def png(samples: Array, bits: int, colour: int, *between: bytes, interlaced: bool = False) -> bytes:
    height, width = samples.shape[:2]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [samples[top::down, left::across] for left, top, across, down in passes]
    data = b"".join(rows(part, bits) for part in parts if part.size)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            *between,
            chunk(b"IDAT", zlib.compress(data)),
            chunk(b"IEND"),
        )
    )


def noise(bits: int, channels: int, *, high: int | None = None) -> Array:
    high = min(1 << bits, high or 1 << bits)
    return numpy.random.default_rng(bits).integers(0, high, (21, 13, channels), dtype=numpy.uint16)


def expected(samples: Array, bits: int, key: tuple[int, ...] | None) -> Array:
    levels = samples >> 8 if bits == 16 else samples * (255 // ((1 << bits) - 1))
    levels = numpy.broadcast_to(levels, (*samples.shape[:2], 3)).astype(numpy.uint8)
    if key is None:
        return levels
    return numpy.where((samples == numpy.array(key)).all(-1, keepdims=True), 255, levels)


def found(data: bytes) -> Array:
    return numpy.asarray(decode_image(data))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "colour"), FORMS)
def test_pixels_of_exactly_the_key_are_white_and_no_others(bits: int, colour: int, interlaced: bool) -> None:
    channels = 3 if colour == RGB else 1
    samples = noise(
        bits, channels, high=4 if bits < 16 else 3
    )  # few values, so that many pixels have the key
    if bits == 16:
        samples[::2] += 0x1200  # of 16 bits some differ from the key above, some below
    for row, column in ((0, 0), (20, 12), (10, 5), (1, 1)):
        key = tuple(int(value) for value in samples[row, column])
        data = png(
            samples, bits, colour, chunk(b"tRNS", struct.pack(f">{channels}H", *key)), interlaced=interlaced
        )
        assert numpy.array_equal(found(data), expected(samples, bits, key)), key


@pytest.mark.parametrize(("bits", "colour"), FORMS)
def test_a_key_that_no_pixel_has_changes_nothing(bits: int, colour: int) -> None:
    channels = 3 if colour == RGB else 1
    samples = noise(bits, channels)
    samples[samples == 1] = 0
    samples[:10] &= 0xFF if bits == 16 else 1  # near black, where upper bytes are those of the key
    samples[samples == 1] = 0
    keyed = png(samples, bits, colour, chunk(b"tRNS", struct.pack(f">{channels}H", *[1] * channels)))
    assert numpy.array_equal(found(keyed), found(png(samples, bits, colour)))
    assert numpy.array_equal(found(keyed), expected(samples, bits, None))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_bits_of_the_key_above_the_depth_do_not_count(bits: int) -> None:
    samples = noise(bits, 1)
    key = (int(samples[0, 0, 0]),)
    data = png(samples, bits, GREY, chunk(b"tRNS", struct.pack(">H", key[0] | 0x100 << bits % 8)))
    assert numpy.array_equal(found(data), expected(samples, bits, key))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "alphas", [b"\0", b"\xff\x00", b"\xff\x80\x00", b"\xff\x00\n", bytes(range(0, 240, 60))]
)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_palette_entries_are_laid_over_white_by_their_alpha(
    bits: int, alphas: bytes, interlaced: bool
) -> None:
    samples = noise(bits, 1, high=4)
    palette = numpy.array([[0, 0, 0], [255, 0, 0], [10, 200, 30], [250, 240, 1]])
    alpha = numpy.frombuffer(alphas.ljust(4, b"\xff")[:4], numpy.uint8)[:, None] / 255
    between = chunk(b"PLTE", bytes(palette.ravel().tolist())), chunk(b"tRNS", alphas)
    picture = found(png(samples, bits, PALETTE, *between, interlaced=interlaced)).astype(float)
    laid = (palette * alpha + 255 * (1 - alpha))[samples[..., 0]]
    assert numpy.abs(picture - laid).max() <= 1


def test_a_key_after_the_pixels_or_beside_alpha_is_ignored_and_the_first_of_two_counts() -> None:
    samples = noise(8, 1, high=3)
    one, two = (chunk(b"tRNS", struct.pack(">H", value)) for value in (1, 2))
    assert numpy.array_equal(found(png(samples, 8, GREY, one, two)), expected(samples, 8, (1,)))
    plain = png(samples, 8, GREY)
    assert numpy.array_equal(found(plain[:-12] + one + plain[-12:]), expected(samples, 8, None))
    grey_alpha = numpy.concatenate([samples, numpy.full_like(samples, 255)], -1)
    assert numpy.array_equal(found(png(grey_alpha, 8, 4, one)), expected(samples, 8, None))


def test_a_key_that_is_cut_is_refused() -> None:
    with pytest.raises(ImageRefused, match="transparent colour"):
        decode_image(png(noise(8, 3), 8, RGB, chunk(b"tRNS", b"\0\1\0\2")))


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"teSt", b"PLTE"])
def test_chunks_without_end_are_refused_and_thousands_are_taken(kind: bytes) -> None:
    samples = noise(8, 3)
    with pytest.raises(ImageTooCostly, match="chunks"):
        decode_image(png(samples, 8, RGB, chunk(kind) * 1_600_000))
    assert numpy.array_equal(found(png(samples, 8, RGB, chunk(kind) * 5000)), expected(samples, 8, None))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"eXIf"])
def test_what_the_decoder_never_gets_can_be_anything(kind: bytes) -> None:
    samples = noise(8, 3)
    bomb = chunk(kind, b"a\0\0" + zlib.compress(bytes(2**22), 9)) * 200
    assert numpy.array_equal(found(png(samples, 8, RGB, bomb)), expected(samples, 8, None))


def test_an_animation_is_refused_and_one_frame_is_a_picture() -> None:
    samples = noise(8, 3)
    for frames in (2, 3, 2**31):
        with pytest.raises(ImageFormatRefused, match="animation"):
            decode_image(png(samples, 8, RGB, chunk(b"acTL", struct.pack(">II", frames, 0))))
    assert found(png(samples, 8, RGB, chunk(b"acTL", struct.pack(">II", 1, 0)))).shape == (21, 13, 3)
