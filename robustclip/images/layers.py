"""Pictures of every mode to RGB; what is transparent is laid over white.

It works in strips: beside the picture and its result only a strip is in memory.
"""

from collections.abc import Iterator

import numpy
from PIL import Image

_STRIP_PIXELS = 2**16


def strips(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) that cover a picture from above."""
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def opaque(image: Image.Image) -> Image.Image:
    """The picture in RGB: upper 8 bits of 16-bit grey; palettes and CMYK without color profiles."""
    image.load()
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    result = Image.new("RGB", image.size)
    for box in strips(*image.size):
        result.paste(_opaque(image.crop(box)), box)
    return result


def _opaque(strip: Image.Image) -> Image.Image:
    if strip.mode.startswith("I"):  # Pillow's own conversion clips at 255
        levels = numpy.asarray(strip).astype(numpy.uint16)
        grey = Image.fromarray((levels >> 8).astype(numpy.uint8)).convert("RGB")
        if (key := strip.info.get("transparency")) is not None:
            grey.paste("white", mask=Image.fromarray(levels == key))
        return grey
    if strip.has_transparency_data:
        layered = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return strip.convert("RGB")
