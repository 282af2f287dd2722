"""The image tower in ONNX Runtime, exported from the torch forward and checked against it.

Text weights, defenses and gradients stay in torch. A prompt set's visual vectors are an input of the graph,
so a new prompt set needs no new file.
"""

import argparse
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip import DEFAULT_BACKBONE
from robustclip.errors import EncoderRefused, InvalidInput
from robustclip.models.classifier import TorchImageEncoder
from robustclip.models.clip import Clip, load_clip
from robustclip.models.export import export_image_encoder, graph_metadata, require_installed
from robustclip.models.scoring import logit_bias
from robustclip.seeds import draw_seeds, row_normal, row_uniform
from robustclip.types import Features, ImageEncoder, Pixels

TOLERANCE = 1e-4  # on coordinates of unit features
PARITY_BATCHES = (1, 4, 7)


@dataclass(frozen=True)
class Parity:
    """The largest difference between an encoder and torch over batches of 1, 4 and 7 pictures.

    `logit` bounds the change of any logit, whatever the label: temperature times the distance of the
    features.
    """

    cosine: float
    feature: float
    logit: float


class OrtImageEncoder:
    """The image tower in ONNX Runtime: torch tensors in and out, on the pixels' device, without gradients.

    A missing graph is exported first: the plain one (`path`) at once, the one for visual prompts
    (`<stem>-visual.onnx` beside it) at its first use. Each is compared with torch before it answers.

    path     default: ./var/onnx/<first 8 digits of the fingerprint>.onnx
    threads  of one inference; 0: ONNX Runtime chooses

    Raises EncoderRefused for a damaged file, a file of another CLIP or disagreement with torch, and
    FeatureNotInstalled without ONNX Runtime.
    """

    def __init__(self, clip: Clip, path: Path | None = None, *, threads: int = 0) -> None:
        self.backend = "onnx"
        self.clip = clip
        self.path = default_path(clip) if path is None else path
        self.parity: dict[Path, Parity] = {}  # by file, for each open graph
        self._threads = threads
        self._lock = threading.Lock()
        self._graphs: dict[bool, _Graph] = {}
        self._graph(visual=False)

    def __call__(self, pixels: Pixels, visual: Tensor | None) -> Features:
        return self._graph(visual=visual is not None)(pixels, visual)

    def _graph(self, *, visual: bool) -> "_Graph":
        if visual in self._graphs:  # without the lock: the export of one graph must not block the other
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
    """The default file of a CLIP's graph, below the working directory."""
    return Path("var", "onnx", f"{clip.fingerprint[:8]}.onnx")


def check_parity(encoder: ImageEncoder, clip: Clip, *, visual: bool = False) -> Parity:
    """Compare an encoder with torch on fixed noise; `visual`: with visual prompts of one layer and of all.

    Raises EncoderRefused when a coordinate of a feature differs by more than 1e-4.
    """
    contexts = _contexts(clip) if visual else [None]
    expected: list[Tensor] = []
    actual: list[Tensor] = []
    with torch.no_grad():
        for batch in PARITY_BATCHES:
            pixels = row_uniform(draw_seeds(0, batch), (3, clip.image_size, clip.image_size), like=clip.mean)
            expected += [TorchImageEncoder(clip)(pixels, context) for context in contexts]
            actual += [encoder(pixels, context) for context in contexts]
    reference, difference = torch.cat(expected), torch.cat(actual) - torch.cat(expected)
    cosine = F.cosine_similarity(reference, reference + difference).min()
    parity = Parity(
        float(cosine), float(difference.abs().max()), float(clip.logit_scale * difference.norm(dim=-1).max())
    )
    if not parity.feature <= TOLERANCE:  # unlike `>`, this refuses NaN
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
    require_installed("onnxruntime")
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
    except Exception as error:  # the errors of onnxruntime have no common base
        raise EncoderRefused(
            f"{path} is no graph that ONNX Runtime can open: {error}",
            help="Remove the file: it is exported again.",
        ) from error
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    for key, expected in graph_metadata(clip, visual).items():
        if metadata.get(key) != expected:
            raise EncoderRefused(
                f"{path}: expected {key} {expected}, found {metadata.get(key, 'none')}.",
                help="Remove the file: it is exported again for this CLIP.",
            )
    return _Graph(session, clip)


def _graph_path(path: Path, visual: bool) -> Path:
    return path.with_stem(f"{path.stem}-visual") if visual else path


def _contexts(clip: Clip) -> list[Tensor | None]:
    """Visual prompts for the comparison: two vectors in the first layer, and in all layers."""
    layers, width = clip.visual_layers or 0, clip.visual_width or 0
    return [
        0.1 * row_normal(draw_seeds(1, depth), (2, width), like=clip.mean) for depth in sorted({1, layers})
    ]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


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
        "--pretrained",
        metavar="TAG|FILE",
        help="its weights, for architectures of open_clip; TAG=FILE, +FILE: see the README",
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
        bias = logit_bias(clip)
        facts = {
            "backbone": clip.arch,
            "fingerprint": clip.fingerprint,
            "logit_scale": float(clip.logit_scale),
            "logit_bias": None if bias is None else float(bias),
            "graphs": graphs,
        }
        print(json.dumps(facts, indent=2))
    else:
        for graph in graphs:
            print(
                "{path}: {bytes} bytes; against torch: cosine {cosine:.7f}, feature {feature:.1e}, logit "
                "{logit:.1e}".format(**graph)
            )
    return 0
