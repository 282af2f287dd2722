"""Generated pictures for the tests of training."""

from pathlib import Path

import pytest
from pictures import write_pictures


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 12 training and 6 test pictures each. Read only."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=12, test=6)
