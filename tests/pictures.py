"""Folders of small generated pictures: one colour a class, noise on top."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red_thing": (200, 40, 40), "green_thing": (40, 200, 40), "blue_thing": (40, 40, 200)}
LABELS = ("blue thing", "green thing", "red thing")  # as class folders sort


def write_pictures(folder: Path, *, size: int = 32, **counts: int) -> Path:
    """`write_pictures(folder, train=6, test=3)`: that many PNG pictures a class and split, the same in every
    process.
    """
    for split, count in counts.items():
        noise = np.random.default_rng(len(split))
        for name, colour in COLOURS.items():
            own = folder / split / name
            own.mkdir(parents=True)
            for number in range(count):
                pixels = np.array(colour) + noise.integers(-40, 41, (size, size, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(own / f"{number}.png")
    return folder
