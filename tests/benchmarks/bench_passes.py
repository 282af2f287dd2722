"""What a gradient costs in forwards: forward and backward to the pixels against the forward alone, at the
same precision and as many rows.

`python tests/benchmarks/bench_passes.py` prints one JSON object: each backbone (a seeded ViT-B-32 and those
that ship), float32 and bfloat16, 8 and 32 rows; once with memory handled as the C library does by default and
once as every command of `training` asks it to (`training/commands.py`), each in its own process. The bound
that the project set itself is 3.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable

import open_clip
import torch

from robustclip.backbones import embedded_names
from robustclip.models.clip import Clip, describe, load_clip
from robustclip.models.towers import encode_image
from training.commands import keep_freed_memory

ROWS = (8, 32)
RUNS = 7
MEMORY = ("default", "kept")


def main() -> None:
    """Measure, print; a child process for each way of handling memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--memory", choices=MEMORY, help="only this way, in this process (default: both, each in its own)"
    )
    memory = parser.parse_args().memory
    if memory is None:
        found = {
            way: json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--memory", way], check=True, capture_output=True
                ).stdout
            )
            for way in MEMORY
        }
        machine = {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        print(json.dumps({**machine, "runs": RUNS, "memory": found}, indent=2))
        return
    if memory == "kept":
        keep_freed_memory()
    print(
        json.dumps(
            {
                name: {half: measured(clip, half == "bf16") for half in ("fp32", "bf16")}
                for name, clip in backbones().items()
            }
        )
    )


def backbones() -> dict[str, Clip]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = describe(
            open_clip.create_model("ViT-B-32", precision="fp32", load_weights=False), "ViT-B-32", "seeded"
        )
    return {"ViT-B-32": vit, **{name: load_clip(name) for name in embedded_names() if name != "tiny"}}


def measured(clip: Clip, half: bool) -> dict[str, dict[str, float]]:
    """By rows: seconds of both, the best of several interleaved runs (other work on the machine only ever
    slows), and their ratio.
    """
    found: dict[str, dict[str, float]] = {}
    for rows in ROWS:
        forward, gradient = steps(clip, rows, half)
        seconds: dict[Callable[[], None], list[float]] = {forward: [], gradient: []}
        for run in range(RUNS + 1):
            for step, taken in seconds.items():
                began = time.perf_counter()
                step()
                if run:  # the first one warms up
                    taken.append(time.perf_counter() - began)
        alone, both = min(seconds[forward]), min(seconds[gradient])
        found[str(rows)] = {
            "forward_seconds": round(alone, 4),
            "gradient_seconds": round(both, 4),
            "ratio": round(both / alone, 2),
        }
    return found


def steps(clip: Clip, rows: int, half: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    pixels = torch.rand(rows, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0))

    def forward() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            encode_image(clip, pixels)

    def gradient() -> None:
        inputs = pixels.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            features = encode_image(clip, inputs)
        features.float().sum().backward()

    return forward, gradient


if __name__ == "__main__":
    main()
