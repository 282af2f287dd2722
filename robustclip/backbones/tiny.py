"""`tiny`: a two-block CLIP at 32 pixels with random weights from a seed. For tests, never of accuracy."""

from typing import Any

import torch
from torch import Tensor, nn

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}


def tiny_weights(model: nn.Module) -> dict[str, Tensor]:
    """The same state dict in every process.

    N(0, 0.2^2) matrices and tables, ones for scales, zeros for biases, CLIP's logit scale of 100.
    """
    generator = torch.Generator().manual_seed(20261122)
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "logit_scale":
            weights[name] = torch.tensor(100.0).log()
        elif tensor.ndim > 1 or name.endswith("embedding"):
            weights[name] = torch.randn(tensor.shape, generator=generator) * 0.2
        else:
            weights[name] = torch.ones_like(tensor) if name.endswith("weight") else torch.zeros_like(tensor)
    return weights
