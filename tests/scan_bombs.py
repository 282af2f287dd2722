"""Progressive JPEGs, written marker by marker, that repeat scans of nothing."""

import struct


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def packed(codes: list[tuple[int, int]]) -> bytes:
    """(value, bits) pairs as compressed data of JPEG."""
    digits = "".join(f"{value:0{bits}b}" for value, bits in codes if bits)
    digits += "1" * (-len(digits) % 8)
    return int(digits or "1", 2).to_bytes(len(digits) // 8).replace(b"\xff", b"\xff\0")


def progressive(width: int, height: int, scans: int, *, components: int = 1, refine: bool = False) -> bytes:
    """A flat grey picture. After the scan of the blocks' means come so many scans, of each component in turn,
    that say of all blocks at once that nothing is added. With `refine` all but the first go through every
    coefficient.
    """
    blocks = -(-width // 8) * -(-height // 8)
    parts = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    head = segment(0xDB, b"\0" + bytes([1] * 64))
    head += segment(0xC2, struct.pack(">BHHB", 8, height, width, components) + parts)
    # Codes: one of one bit for "mean unchanged"; 15 of four bits for runs of 2^14 to 2^0 blocks.
    head += segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    head += segment(0xC4, b"\x10" + bytes([0, 0, 0, 15] + [0] * 12) + bytes(range(0xE0, -1, -0x10)))
    named = b"".join(bytes([number, 0]) for number in range(1, components + 1))
    means = segment(0xDA, bytes([components]) + named + b"\0\0\0") + packed([(0, 1)] * blocks * components)
    runs: list[tuple[int, int]] = []
    left = blocks
    for power in range(14, -1, -1):
        while left >= 2**power:
            run = min(left, 2 ** (power + 1) - 1)
            runs += [(14 - power, 4), (run - 2**power, power)]
            left -= run
    nothing = packed(runs)
    body = b""
    for index in range(scans):
        precision = 0x10 if refine and index >= components else int(refine)
        body += segment(0xDA, bytes([1, index % components + 1, 0, 1, 63, precision])) + nothing
    return b"\xff\xd8" + head + means + body + b"\xff\xd9"
