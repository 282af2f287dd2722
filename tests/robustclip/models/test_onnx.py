import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustclip.backbones import build_backbone
from robustclip.backbones.tiny import TINY_CONFIG
from robustclip.errors import EncoderRefused, FeatureNotInstalled, InvalidInput
from robustclip.models import export, onnx
from robustclip.models.classifier import TorchImageEncoder, zero_shot
from robustclip.models.clip import Clip, describe
from robustclip.models.export import export_image_encoder
from robustclip.models.onnx import OrtImageEncoder, check_parity, default_path
from robustclip.models.prompts import Prompts

LABELS = ("a cat", "a dog", "a rocket")
EXPORT = [
    sys.executable,
    "-c",
    "import sys; from robustclip.models.onnx import main; sys.exit(main(['--backbone', 'tiny']))",
]


@pytest.fixture(scope="session")
def graphs(tiny: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain graph of `tiny`, exported once, with the one for visual prompts beside it."""
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    export_image_encoder(tiny, path, visual_prompts=False)
    export_image_encoder(tiny, path.with_stem("tiny-visual"), visual_prompts=True)
    return path


@pytest.fixture(scope="session")
def encoder(tiny: Clip, graphs: Path) -> OrtImageEncoder:
    return OrtImageEncoder(tiny, graphs, threads=1)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def pixels_of(clip: Clip, batch: int, seed: int = 0) -> Tensor:
    return torch.rand(
        batch, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(seed)
    )


def context_of(clip: Clip, depth: int, vectors: int) -> Tensor:
    return torch.randn(depth, vectors, clip.visual_width or 0, generator=torch.Generator().manual_seed(depth))


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 32])
def test_features_equal_torch_at_every_batch_size(tiny: Clip, encoder: OrtImageEncoder, batch: int) -> None:
    pixels = pixels_of(tiny, batch)
    found = encoder(pixels, None)
    assert (found.dtype, found.shape) == (torch.float32, (batch, tiny.embed_dim))
    assert torch.allclose(found, TorchImageEncoder(tiny)(pixels, None), atol=2e-6)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("vectors", [1, 3, 8])
def test_visual_prompts_of_any_depth_and_length_go_through_one_graph(
    tiny: Clip, encoder: OrtImageEncoder, depth: int, vectors: int
) -> None:
    pixels, context = pixels_of(tiny, 5), context_of(tiny, depth, vectors)
    found = encoder(pixels, context)
    assert torch.allclose(found, TorchImageEncoder(tiny)(pixels, context), atol=2e-6)
    assert not torch.allclose(found, encoder(pixels, None), atol=1e-3)


def test_no_pictures_give_no_features(tiny: Clip, encoder: OrtImageEncoder) -> None:
    assert encoder(pixels_of(tiny, 0), None).shape == (0, tiny.embed_dim)


def test_a_row_does_not_depend_on_its_batch(tiny: Clip, encoder: OrtImageEncoder) -> None:
    pixels = pixels_of(tiny, 8)
    assert torch.allclose(encoder(pixels[3:4], None), encoder(pixels, None)[3:4], atol=1e-6)


def test_a_classifier_judges_alike_over_either_encoder(tiny: Clip, encoder: OrtImageEncoder) -> None:
    prompts = Prompts(visual=context_of(tiny, 2, 3))
    pixels, seeds = pixels_of(tiny, 6), torch.zeros(6, dtype=torch.int64)
    expected = zero_shot(tiny, prompts, LABELS)(pixels, seeds)
    found = zero_shot(tiny, prompts, LABELS, encoder=encoder)(pixels, seeds)
    assert torch.allclose(found, expected, atol=1e-3)
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))


def test_parity_is_measured_where_a_graph_is_opened(
    tiny: Clip, encoder: OrtImageEncoder, graphs: Path
) -> None:
    parity = encoder.parity[graphs]
    assert parity.cosine > 0.99999
    assert parity.feature < 1e-5
    assert parity.logit < 100 * 1e-5
    assert check_parity(encoder, tiny) == parity


class Shifted:
    """An encoder that is off by a little in one coordinate, or answers NaN."""

    backend = "shifted"

    def __init__(self, clip: Clip, by: float) -> None:
        self.torch, self.by = TorchImageEncoder(clip), by

    def __call__(self, pixels: Tensor, visual: Tensor | None) -> Tensor:
        features = self.torch(pixels, visual).clone()
        features[-1, 0] += self.by
        return features


def test_the_gate_refuses_what_differs_from_torch(tiny: Clip) -> None:
    assert check_parity(Shifted(tiny, 5e-5), tiny).feature == pytest.approx(5e-5, rel=0.01)
    for by in (2e-4, -1.0, torch.nan):
        with pytest.raises(EncoderRefused, match="shifted encoder differs"):
            check_parity(Shifted(tiny, by), tiny)


def test_a_graph_of_another_clip_is_refused(graphs: Path) -> None:
    torch.manual_seed(1)
    other = describe(build_backbone(TINY_CONFIG), "tiny", "random")
    with pytest.raises(EncoderRefused, match=r"expected robustclip\.fingerprint"):
        OrtImageEncoder(other, graphs)


def test_the_graph_for_visual_prompts_is_not_the_plain_one(tiny: Clip, graphs: Path) -> None:
    with pytest.raises(EncoderRefused, match=r"robustclip\.visual false, found true"):
        OrtImageEncoder(tiny, graphs.with_stem("tiny-visual"))


@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(1000)])
def test_a_damaged_file_is_refused_and_kept(tiny: Clip, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(EncoderRefused, match=r"damaged\.onnx"):
        OrtImageEncoder(tiny, path)
    assert path.read_bytes() == content


def test_gradients_are_refused_rather_than_lost(tiny: Clip, encoder: OrtImageEncoder) -> None:
    with torch.enable_grad(), pytest.raises(EncoderRefused, match="no gradients"):
        encoder(pixels_of(tiny, 1).requires_grad_(), None)
    encoder(pixels_of(tiny, 1).requires_grad_(), None)


def test_pixels_of_another_size_are_refused(tiny: Clip, encoder: OrtImageEncoder) -> None:
    with pytest.raises(InvalidInput, match=r"\[B, 3, 32, 32\]"):
        encoder(torch.zeros(1, 3, 33, 32), None)


def test_a_missing_package_names_the_extra(tiny: Clip, graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FeatureNotInstalled, match=r"onnxruntime.*robustclip\[cpu\]"):
        OrtImageEncoder(tiny, graphs)
    with pytest.raises(FeatureNotInstalled, match="onnxscript"):
        export_image_encoder(tiny, graphs, visual_prompts=False)


def test_threads_may_share_an_encoder(tiny: Clip, encoder: OrtImageEncoder) -> None:
    pixels = pixels_of(tiny, 4)
    expected = encoder(pixels, None)
    answers: list[Tensor] = []
    threads = [threading.Thread(target=lambda: answers.append(encoder(pixels, None))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found, expected) for found in answers)
    assert len(answers) == 8


def test_the_command_exports_and_reports_parity(
    tiny: Clip,
    graphs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert onnx.main(["--backbone", "tiny", "--json"]) == 0
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    assert graph["path"] == str(default_path(tiny))
    assert graph["cosine"] > 0.99999
    assert [path.name for path in (tmp_path / "var" / "onnx").iterdir()] == [f"{tiny.fingerprint[:8]}.onnx"]


@pytest.mark.slow
def test_two_processes_may_export_the_same_graph_at_once(tmp_path: Path) -> None:
    exporters = [
        subprocess.Popen(EXPORT, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for exporter in exporters:
        _, complaint = exporter.communicate(timeout=300)
        assert exporter.returncode == 0, complaint
    assert [path.suffix for path in (tmp_path / "var" / "onnx").iterdir()] == [".onnx"]


@pytest.mark.slow
def test_a_convolutional_stem_is_exported_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    clip = describe(
        build_backbone(TINY_CONFIG | {"vision_cfg": vision, "stem": "efficientnet_lite0"}),
        "stemmed",
        "random",
    )
    encoder = OrtImageEncoder(clip, tmp_path / "stemmed.onnx", threads=1)
    assert encoder.parity[encoder.path].feature < 1e-5
