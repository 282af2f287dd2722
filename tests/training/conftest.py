"""Generated pictures for the tests of training."""

from pathlib import Path

import pytest
import torch
from pictures import write_pictures

from training.data.folders import load_data
from training.threats.judging import Pictures


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 12 training and 6 test pictures each. Read only."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=12, test=6)


@pytest.fixture
def pictures(picture_folder: Path, tmp_path: Path) -> Pictures:
    """The test pictures as they are measured on, in batches that don't divide them."""
    data = load_data(picture_folder, "test")
    return Pictures(data, torch.arange(len(data)), 0, tmp_path / "cache", batch=7)
