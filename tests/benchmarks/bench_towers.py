"""What a gradient pass costs, each choice of `robustclip/models/towers.py` against what it replaced, in one
run: `python tests/benchmarks/bench_towers.py`.

Prints one JSON object; ratios above 1 are in our favour. Nothing here is asserted: machines differ, and that
is the point of running it on yours.
"""

import json
import platform
import time
from collections.abc import Callable

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.models.clip import Clip, describe, load_clip
from robustclip.models.towers import encode_image, encode_text

RUNS = 5
PICTURES = 8
LABELS, VECTORS = 101, 32


def main() -> None:
    """Measure, print."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = describe(
            open_clip.create_model("ViT-B-32", precision="fp32", load_weights=False), "ViT-B-32", "seeded"
        )
    mini = load_clip("mini")
    results = {
        "image_backward_vit_b_32_fp32": ratio(
            image_step(vit, open_clip_image, False), image_step(vit, encode_image, False)
        ),
        "image_backward_vit_b_32_bf16": ratio(
            image_step(vit, open_clip_image, True), image_step(vit, encode_image, True)
        ),
        "image_backward_mini_fp32": ratio(
            image_step(mini, open_clip_image, False), image_step(mini, encode_image, False)
        ),
        "attention_written_out_fp32": ratio(
            attention_step(True, torch.float32), attention_step(False, torch.float32)
        ),
        "attention_written_out_bf16": ratio(
            attention_step(True, torch.bfloat16), attention_step(False, torch.bfloat16)
        ),
        "text_context_shared_mini": ratio(text_step(mini, shared=False), text_step(mini, shared=True)),
    }
    machine = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(
        json.dumps(
            {
                **machine,
                "pictures": PICTURES,
                "labels": LABELS,
                "vectors": VECTORS,
                "runs": RUNS,
                "results": results,
            },
            indent=2,
        )
    )


def ratio(before: Callable[[], None], after: Callable[[], None]) -> dict[str, float]:
    """Seconds of both, the best of several interleaved runs (other work on the machine only ever slows), and
    how often one fits into the other.
    """
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    for run in range(RUNS + 1):
        for name, step in (("before", before), ("after", after)):
            began = time.perf_counter()
            step()
            if run:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    best = {name: min(times) for name, times in seconds.items()}
    return {
        "before_seconds": round(best["before"], 4),
        "after_seconds": round(best["after"], 4),
        "ratio": round(best["before"] / best["after"], 2),
    }


def open_clip_image(clip: Clip, pixels: Tensor) -> Tensor:
    """The image tower as open_clip runs it."""
    return clip.model.encode_image((pixels - clip.mean[:, None, None]) / clip.std[:, None, None])


def image_step(clip: Clip, encode: Callable[[Clip, Tensor], Tensor], half: bool) -> Callable[[], None]:
    """Forward and backward to the pixels."""
    pixels = torch.rand(PICTURES, 3, clip.image_size, clip.image_size)

    def step() -> None:
        inputs = pixels.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            features = encode(clip, inputs)
        features.float().sum().backward()

    return step


def attention_step(fused: bool, dtype: torch.dtype) -> Callable[[], None]:
    """Attention over 512 x 37 tokens of width 256, forward and backward."""
    projected = torch.randn(3, 512, 4, 37, 64, dtype=dtype)

    def step() -> None:
        query, key, value = projected.clone().requires_grad_()
        mixed = (
            F.scaled_dot_product_attention(query, key, value)
            if fused
            else (query * 64 ** (-0.5) @ key.transpose(-1, -2)).softmax(dim=-1) @ value
        )
        mixed.sum().backward()

    return step


def text_step(clip: Clip, *, shared: bool) -> Callable[[], None]:
    """The text tower over all labels behind learned vectors, forward and backward to the vectors."""
    tokens = clip.tokenize([f"thing {index}." for index in range(LABELS)])
    vectors = 0.02 * torch.randn(1, VECTORS, clip.text_width)

    def step() -> None:
        context = vectors.clone().requires_grad_()
        encode_text(clip, tokens, context if shared else context.expand(LABELS, -1, -1, -1)).sum().backward()

    return step


if __name__ == "__main__":
    main()
