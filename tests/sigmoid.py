"""`tiny` as if it had been trained with a sigmoid: the same towers, and a logit bias."""

import json
from pathlib import Path
from typing import Any, cast

from torch import nn

from robustclip.backbones import build_backbone, write_weights
from robustclip.backbones.tiny import TINY_CONFIG, tiny_weights
from robustclip.models.clip import Clip, describe

BIAS = -4.0


def sigmoid_clip(bias: float = BIAS) -> Clip:
    return describe(_model(bias), "tiny", "biased")


def sigmoid_backbone(folder: Path, bias: float = BIAS) -> Path:
    """The same as a JSON that `load_clip` reads."""
    path = folder / "tiny-sigmoid.json"
    path.write_text(json.dumps(TINY_CONFIG | {"init_logit_bias": bias}))
    write_weights(_model(bias), path.with_suffix(".safetensors"))
    return path


def _model(bias: float) -> nn.Module:
    model = build_backbone(TINY_CONFIG | {"init_logit_bias": bias})
    model.load_state_dict(tiny_weights(model))
    cast(Any, model).logit_bias.data.fill_(bias)
    return model
