"""What the shape of an embedded backbone costs: pictures a second, forward and with the gradient that an
attack asks for.

`python tests/benchmarks/bench_backbones.py` prints one JSON object: the shipped backbones, and `mini`'s shape
with other pixels, stem depths (stride 16 keeps a grid of 6 x 6, 32 one of 3 x 3) and layers, random weights.
Ratios are against `mini` in the same run.
"""

import json
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from robustclip.backbones import build_backbone, embedded_names, read_config
from robustclip.models.clip import Clip, describe, load_clip
from robustclip.models.towers import encode_image

RUNS = 5
PICTURES = 64
SHAPES = {
    "96 px, stride 16, 6 layers": (96, 16, 6),
    "96 px, stride 32, 3 layers": (96, 32, 3),
    "128 px, stride 32, 6 layers": (128, 32, 6),
}


def main() -> None:
    """Measure, print."""
    backbones = {name: load_clip(name) for name in embedded_names() if name != "tiny"}
    backbones |= {name: shaped(*shape) for name, shape in SHAPES.items()}
    speeds = {name: measured(clip) for name, clip in backbones.items()}
    results = {
        name: {
            **speed,
            "gradients_of_mini": round(speed["gradients_fp32"] / speeds["mini"]["gradients_fp32"], 2),
        }
        for name, speed in speeds.items()
    }
    machine = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps({**machine, "pictures": PICTURES, "runs": RUNS, "pictures_a_second": results}, indent=2))


def shaped(size: int, stride: int, layers: int) -> Clip:
    """`mini` with another shape of its image tower, not trained."""
    config: dict[str, Any] = read_config("mini")
    vision = config["vision_cfg"] | {"image_size": size, "patch_size": stride, "layers": layers}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_backbone(config | {"vision_cfg": vision})
    return describe(
        model, "mini", "random", mean=torch.tensor(config["mean"]), std=torch.tensor(config["std"])
    )


def measured(clip: Clip) -> dict[str, float]:
    """Pictures a second: the best of several runs, since other work on the machine only ever slows."""
    pixels = torch.rand(
        PICTURES, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0)
    )

    def forward(half: bool) -> Callable[[], None]:
        def step() -> None:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                encode_image(clip, pixels)

        return step

    def gradient(half: bool) -> Callable[[], None]:
        def step() -> None:
            inputs = pixels.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                encode_image(clip, inputs).float().square().sum().backward()

        return step

    steps = {
        "forwards_fp32": forward(False),
        "forwards_bf16": forward(True),
        "gradients_fp32": gradient(False),
        "gradients_bf16": gradient(True),
    }
    return {name: round(PICTURES / best_seconds(step)) for name, step in steps.items()}


def best_seconds(step: Callable[[], None]) -> float:
    seconds: list[float] = []
    for _ in range(RUNS + 1):  # the first one warms up, and is never the best
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
