"""How a picture is turned: by the orientation in its EXIF block and by nothing else, in every format.

Browsers do the same (CSS Images 3, `image-orientation: from-image`). The orientation that XMP can repeat
(`tiff:Orientation`) is ignored, whether there is an EXIF block or not.
"""

import struct

from PIL import Image

_ORIENTATION = 0x0112
_PREFIX = b"Exif\0\0"
_TYPES = {1: "B", 3: "H", 4: "I"}  # of TIFF 6.0: BYTE, SHORT (as EXIF wants it), LONG (as some write it)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, exif: bytes) -> Image.Image:
    """Turn the picture as its EXIF block says. Unreadable blocks are common and are ignored."""
    turn = _UPRIGHT.get(orientation_of(exif))
    return image if turn is None else image.transpose(turn)


def orientation_of(exif: bytes) -> int:
    """What the first directory of an EXIF block (TIFF 6.0, section 2) says; 1, upright, if nothing."""
    tiff = exif.removeprefix(_PREFIX)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION:
                return struct.unpack_from(order + _TYPES[kind], tiff, entry + 8)[0] if count == 1 else 1
    except (struct.error, KeyError):
        pass
    return 1
