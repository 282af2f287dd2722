"""The image tower in ONNX Runtime: an encoder like the torch one, exported from the same forward and held to
it.

Text weights, defenses and gradients stay in torch. A graph is one file, bound to its CLIP by the fingerprint
in its metadata; a prompt set's visual vectors are an input of the graph, so a new prompt set never needs a
new file.
"""

import argparse
import importlib.util
import json
import threading
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip import DEFAULT_BACKBONE
from robustclip.errors import EncoderRefused, FeatureNotInstalled, InvalidInput
from robustclip.files import replacing
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import Clip, load_clip
from robustclip.models.towers import encode_image
from robustclip.seeds import draw_seeds, row_normal, row_uniform
from robustclip.types import Features, ImageEncoder, Pixels

TOLERANCE = 1e-4  # on coordinates of unit features
PARITY_BATCHES = (1, 4, 7)
# raised whenever the exported forward or its inputs change, so that no older file is taken for a current one
_GRAPH = "1"
_MAX_BYTES = 2**31 - 2**26  # one protobuf message holds 2 GiB; the graph itself needs some of it


@dataclass(frozen=True)
class Parity:
    """The largest difference between an encoder and torch over batches of 1, 4 and 7, without and (where the
    tower takes them) with visual prompts.

    `logit` bounds the change of any logit, whatever the label: temperature times the distance of the two
    features.
    """

    cosine: float
    feature: float
    logit: float


class _Tower(nn.Module):
    """What is exported: pixels [B, 3, S, S], and the visual context [D, N, W] of which the first `depth` rows
    count -> unit features [B, E].
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
    """Write the image tower's graph, with or without an input for visual prompts; batch size and number of
    vectors stay free.

    Raises EncoderRefused for a tower that takes no visual prompts, is too large for one file, or that the
    exporter can't trace.
    """
    _require("onnx", "onnxscript")
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
            raise EncoderRefused(f"the image tower of {clip.arch} takes no visual prompts.")
        inputs["visual_context"] = torch.zeros(clip.visual_layers, 3, clip.visual_width, device=clip.device)
        inputs["depth"] = torch.tensor(1, device=clip.device)
        dynamic |= {"visual_context": {1: torch.export.Dim("vectors")}, "depth": None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about its own code
            program = torch.onnx.export(
                _Tower(clip).eval(),
                kwargs=inputs,
                dynamic_shapes=dynamic,
                output_names=["features"],
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own kinds, and whatever the traced code raised
        raise EncoderRefused(
            f"the image tower of {clip.arch} could not be exported: {error}", help="Use the torch encoder."
        ) from error
    assert program is not None
    program.model.metadata_props.update(_metadata(clip, visual_prompts))
    with replacing(path) as partial:  # several processes may export the same graph at once
        program.save(str(partial), external_data=False)


class OrtImageEncoder:
    """The image tower in ONNX Runtime: torch tensors in and out, on the pixels' device, and no gradients.

    A graph that is absent is exported first: the plain one, `path`, at once; the one for visual prompts,
    `<stem>-visual.onnx` beside it, when they are first asked for. Each passes the parity gate before it
    answers. Raises EncoderRefused for a foreign or damaged file and for disagreement with torch,
    FeatureNotInstalled without ONNX Runtime.

    path: default ./var/onnx/<first 8 digits of the fingerprint>.onnx. threads: of one inference; 0 lets ONNX
    Runtime choose.
    """

    def __init__(self, clip: Clip, path: Path | None = None, *, threads: int = 0) -> None:
        self.backend = "onnx"
        self.clip = clip
        self.path = default_path(clip) if path is None else path
        self.parity: dict[Path, Parity] = {}  # of each graph that is open
        self._threads = threads
        self._lock = threading.Lock()
        self._graphs: dict[bool, _Graph] = {}
        self._graph(visual=False)

    def __call__(self, pixels: Pixels, visual: Tensor | None) -> Features:
        return self._graph(visual=visual is not None)(pixels, visual)

    def _graph(self, *, visual: bool) -> "_Graph":
        if visual in self._graphs:  # without the lock: exporting one graph must not stop the other
            return self._graphs[visual]
        with self._lock:
            if visual not in self._graphs:
                path = _graph_path(self.path, visual)
                if not path.exists():
                    export_image_encoder(self.clip, path, visual_prompts=visual)
                graph = _open(path, self.clip, visual=visual, threads=self._threads)
                self.parity[path] = check_parity(graph, self.clip, visual=visual)
                self._graphs[visual] = graph
            return self._graphs[visual]


def default_path(clip: Clip) -> Path:
    """Where the graph of a CLIP is kept unless told otherwise, below the working directory."""
    return Path("var", "onnx", f"{clip.fingerprint[:8]}.onnx")


def check_parity(encoder: ImageEncoder, clip: Clip, *, visual: bool = False) -> Parity:
    """Compare an encoder with torch on fixed noise, three batch sizes; `visual`: under visual prompts, one
    layer deep and all.

    Raises EncoderRefused when a coordinate of a feature differs by more than 1e-4.
    """
    contexts = _contexts(clip) if visual else [None]
    expected: list[Tensor] = []
    found: list[Tensor] = []
    with torch.no_grad():
        for batch in PARITY_BATCHES:
            pixels = row_uniform(draw_seeds(0, batch), (3, clip.image_size, clip.image_size), like=clip.mean)
            expected += [TorchImageEncoder(clip)(pixels, context) for context in contexts]
            found += [encoder(pixels, context) for context in contexts]
    reference, difference = torch.cat(expected), torch.cat(found) - torch.cat(expected)
    cosine = F.cosine_similarity(reference, reference + difference).min()
    parity = Parity(
        float(cosine), float(difference.abs().max()), float(clip.logit_scale * difference.norm(dim=-1).max())
    )
    if not parity.feature <= TOLERANCE:  # so written because NaN is not larger either
        raise EncoderRefused(
            f"the {encoder.backend} encoder differs from torch by {parity.feature:.1e} in a feature, at "
            f"most {TOLERANCE:.0e} is accepted.",
            help="Use the torch encoder, and report this with your onnxruntime version.",
        )
    return parity


@dataclass(frozen=True)
class _Graph:
    """One ONNX Runtime session, called like an encoder."""

    session: Any
    clip: Clip
    backend: str = "onnx"

    def __call__(self, pixels: Pixels, visual: Tensor | None) -> Features:
        if torch.is_grad_enabled() and (
            pixels.requires_grad or (visual is not None and visual.requires_grad)
        ):
            raise EncoderRefused(
                "ONNX Runtime gives no gradients.", help="Attack and train through the torch encoder."
            )
        size = self.clip.image_size
        if pixels.shape[1:] != (3, size, size):
            raise InvalidInput(
                f"expected pixels [B, 3, {size}, {size}], found {list(pixels.shape)}.", field="pixels"
            )
        if pixels.shape[0] == 0:
            return pixels.new_zeros(0, self.clip.embed_dim)
        inputs = {"pixels": _array(pixels)}
        if visual is not None:
            padded = F.pad(
                visual.to(torch.float32), (0, 0, 0, 0, 0, (self.clip.visual_layers or 0) - visual.shape[0])
            )
            inputs |= {"visual_context": _array(padded), "depth": numpy.array(visual.shape[0])}
        return torch.from_numpy(self.session.run(["features"], inputs)[0]).to(pixels.device)


def _open(path: Path, clip: Clip, *, visual: bool, threads: int) -> _Graph:
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # decoding shares the cores
    providers = [
        name
        for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if name in onnxruntime.get_available_providers()
    ]
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises kinds of its own, which have no common base
        raise EncoderRefused(
            f"{path} is no graph that ONNX Runtime can open: {error}",
            help="Remove the file: it is exported again.",
        ) from error
    found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    for key, expected in _metadata(clip, visual).items():
        if found.get(key) != expected:
            raise EncoderRefused(
                f"{path}: expected {key} {expected}, found {found.get(key, 'none')}.",
                help="Remove the file: it is exported again for this CLIP.",
            )
    return _Graph(session, clip)


def _graph_path(path: Path, visual: bool) -> Path:
    return path.with_stem(f"{path.stem}-visual") if visual else path


def _metadata(clip: Clip, visual: bool) -> dict[str, str]:
    return {
        "robustclip.graph": _GRAPH,
        "robustclip.visual": str(visual).lower(),
        "robustclip.fingerprint": clip.fingerprint,
    }


def _contexts(clip: Clip) -> list[Tensor | None]:
    """Visual prompts to compare under: two vectors in the first layer, and in all layers."""
    layers, width = clip.visual_layers or 0, clip.visual_width or 0
    return [
        0.1 * row_normal(draw_seeds(1, depth), (2, width), like=clip.mean) for depth in sorted({1, layers})
    ]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _require(*modules: str) -> None:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise FeatureNotInstalled(
            f"{', '.join(missing)} is not installed.",
            help="pip install 'robustclip[cpu]', or [gpu] on a CUDA machine.",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Export the image tower for ONNX Runtime and check it against torch."""
    parser = argparse.ArgumentParser(
        prog="robustclip export-onnx",
        description="Export the image tower for ONNX Runtime and check it against torch.",
    )
    parser.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        metavar="ARCH",
        help="the CLIP to export (default: %(default)s)",
    )
    parser.add_argument(
        "--pretrained", metavar="TAG|FILE", help="its weights, for architectures of open_clip"
    )
    parser.add_argument(
        "--path",
        type=Path,
        metavar="FILE",
        help="where to (default: ./var/onnx/FINGERPRINT.onnx); replaced if it exists",
    )
    parser.add_argument(
        "--visual", action="store_true", help="export the graph for visual prompts, FILE-visual.onnx, too"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    clip = load_clip(arguments.backbone, arguments.pretrained)
    path = default_path(clip) if arguments.path is None else arguments.path
    for visual in (False, True) if arguments.visual else (False,):
        export_image_encoder(clip, _graph_path(path, visual), visual_prompts=visual)
    encoder = OrtImageEncoder(clip, path)
    if arguments.visual:
        check_parity(encoder, clip, visual=True)
    graphs = [
        {"path": str(file), "bytes": file.stat().st_size, **asdict(parity)}
        for file, parity in encoder.parity.items()
    ]
    if arguments.json:
        print(
            json.dumps({"backbone": clip.arch, "fingerprint": clip.fingerprint, "graphs": graphs}, indent=2)
        )
    else:
        for graph in graphs:
            print(
                "{path}: {bytes} bytes; against torch: cosine {cosine:.7f}, feature {feature:.1e}, logit "
                "{logit:.1e}".format(**graph)
            )
    return 0
