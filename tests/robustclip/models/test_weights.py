"""Weights: which files and models are refused, by name."""

import zipfile
from pathlib import Path

import pytest
import torch

from robustclip.errors import UnsupportedClip
from robustclip.models.clip import load_clip
from robustclip.models.weights import is_torchscript


def test_a_torchscript_archive_needs_the_quickgelu_architecture(tmp_path: Path) -> None:
    path = tmp_path / "openai.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("openai/code/__torch__/model.py", "")
    assert is_torchscript(path)
    with pytest.raises(UnsupportedClip, match="Use ViT-B-32-quickgelu"):
        load_clip("ViT-B-32", str(path))


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
