"""Fixtures that several packages' tests share. What one file alone needs stands in that file."""

from pathlib import Path

import pytest
import torch

from robustclip.models.clip import Clip, load_clip

torch.set_num_threads(1)  # small tensors need no more, and sums stay the same from machine to machine

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A service in an earlier test may have set another number of threads: threads that begin later take it,
    this one does not, and sums differ in their last bits.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Clip:
    """A seeded random CLIP of 32 pixels and two layers: right shapes in no time, no knowledge."""
    return load_clip("tiny")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; mark a test that asks for it with `data`."""
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent")
    return SHARED_DATA
