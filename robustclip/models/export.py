"""Write the image tower as an ONNX graph, one file bound to its CLIP by the fingerprint in its metadata."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.errors import EncoderRefused, FeatureNotInstalled
from robustclip.files import replacing
from robustclip.models.clip import Clip
from robustclip.models.scoring import logit_bias
from robustclip.models.towers import encode_image

# Increase it whenever the exported forward or its inputs change, so that older files are refused.
_GRAPH = "1"
_MAX_BYTES = 2**31 - 2**26  # of weights: one protobuf message holds 2 GiB, graph included


class _Tower(nn.Module):
    """The exported module: pixels [B, 3, S, S] and a visual context [D, N, W] -> unit features [B, E].

    Only the first `depth` rows of the context count.
    """

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.visual = clip.model.visual  # registered, so that the exporter sees weights and not constants
        self._clip = clip

    def forward(
        self, pixels: Tensor, visual_context: Tensor | None = None, depth: Tensor | None = None
    ) -> Tensor:
        return F.normalize(encode_image(self._clip, pixels, visual_context, depth=depth), dim=-1)


def export_image_encoder(clip: Clip, path: Path, *, visual_prompts: bool) -> None:
    """Write the image tower's graph, with or without an input for visual prompts.

    Batch size and number of vectors stay free. Raises EncoderRefused if the tower takes no visual prompts, is
    too large for one file, or can't be traced.
    """
    require_installed("onnx", "onnxscript")
    weights = sum(
        tensor.numel() * tensor.element_size() for tensor in clip.model.visual.state_dict().values()
    )
    if weights > _MAX_BYTES:
        raise EncoderRefused(
            f"the image tower of {clip.arch} has {weights} bytes, more than one ONNX file holds.",
            help="Use the torch encoder.",
        )
    inputs: dict[str, Tensor] = {
        "pixels": torch.zeros(2, 3, clip.image_size, clip.image_size, device=clip.device)
    }
    dynamic: dict[str, Any] = {"pixels": {0: torch.export.Dim("batch")}}
    if visual_prompts:
        if clip.visual_width is None or clip.visual_layers is None:
            raise EncoderRefused(f"{clip.arch} takes no visual prompts: {clip.capabilities.visual_prompts}")
        inputs["visual_context"] = torch.zeros(clip.visual_layers, 3, clip.visual_width, device=clip.device)
        inputs["depth"] = torch.tensor(1, device=clip.device)
        dynamic |= {"visual_context": {1: torch.export.Dim("vectors")}, "depth": None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about its own code
            program = torch.onnx.export(
                _Tower(clip).eval(),
                kwargs=inputs,
                dynamic_shapes=dynamic,
                output_names=["features"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's own errors, and any error of the traced code
        raise EncoderRefused(
            f"the image tower of {clip.arch} could not be exported: {error}", help="Use the torch encoder."
        ) from error
    assert program is not None
    program.model.metadata_props.update(graph_metadata(clip, visual_prompts))
    with replacing(path) as partial:  # several processes may export the same graph at once
        program.save(str(partial), external_data=False)


def graph_metadata(clip: Clip, visual: bool) -> dict[str, str]:
    """What a graph file says about itself: version of the graph, kind, fingerprint of its CLIP.

    For a CLIP that was trained with a sigmoid also the two numbers that turn a cosine into a probability,
    sigmoid(scale * cosine + bias), for readers of the file that do not have the CLIP.
    """
    bias = logit_bias(clip)
    sigmoid = (
        {}
        if bias is None
        else {
            "robustclip.logit_scale": f"{float(clip.logit_scale):.9g}",
            "robustclip.logit_bias": f"{bias:.9g}",
        }
    )
    return {
        "robustclip.graph": _GRAPH,
        "robustclip.visual": str(visual).lower(),
        "robustclip.fingerprint": clip.fingerprint,
        **sigmoid,
    }


def require_installed(*modules: str) -> None:
    """FeatureNotInstalled unless all modules can be imported."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise FeatureNotInstalled(
            f"{', '.join(missing)} is not installed.",
            help="pip install 'robustclip[cpu]', or [gpu] on a CUDA machine.",
        )
