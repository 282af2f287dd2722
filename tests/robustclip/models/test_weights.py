"""Weights: which files and models are refused, by name."""

import zipfile
from pathlib import Path

import open_clip
import pytest
import torch

from robustclip.errors import UnsupportedClip
from robustclip.models.clip import Clip, describe, load_clip
from robustclip.models.weights import is_torchscript, refuse_foreign_towers, refuse_other_activation


def test_a_torchscript_archive_needs_the_quickgelu_architecture(tmp_path: Path) -> None:
    path = tmp_path / "openai.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("openai/code/__torch__/model.py", "")
    assert is_torchscript(path)
    with pytest.raises(UnsupportedClip, match="Use ViT-B-32-quickgelu"):
        load_clip("ViT-B-32", str(path))


def test_the_quickgelu_trap_is_named_both_ways(tiny: Clip) -> None:
    refuse_other_activation(tiny.model, "tiny", quick_gelu=False)
    with pytest.raises(UnsupportedClip, match="Use tiny-quickgelu"):
        refuse_other_activation(tiny.model, "tiny", quick_gelu=True)


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(UnsupportedClip, match="can't be read as weights"):
        load_clip("ViT-B-32", str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.safetensors", b"no tensors"), ("a.pt", b"no tensors"), ("list.pt", None), ("epoch.pt", None)],
)
def test_files_that_hold_no_state_dict_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        torch.save([1, 2] if name == "list.pt" else {"epoch": 3}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UnsupportedClip) as refusal:
        load_clip("ViT-B-32", str(path))
    assert refusal.value.field == "clip.pretrained"


def test_towers_that_are_not_open_clips_native_ones_are_refused_by_name() -> None:
    small = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 100, "width": 32, "heads": 1, "layers": 1}
    with pytest.raises(UnsupportedClip, match="CustomTextCLIP"):
        refuse_foreign_towers(open_clip.CustomTextCLIP(32, small, text), "custom")
    with pytest.raises(UnsupportedClip, match="class token"):
        describe(open_clip.CLIP(32, small | {"pool_type": "avg"}, text), "averaging", "seeded")
