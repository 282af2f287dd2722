"""Files that are whole or absent, whoever writes at the same time and whenever a writer is killed. Every package writes through these."""

import contextlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path

PARTIAL = ".partial"  # how the name of a file ends that is being written; its name begins with a dot


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: a reader sees the old file or the new, a power cut leaves one of them."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_once(path: Path, content: bytes) -> bool:
    """Put `content` at `path` unless there is a file already; whether it was put. Of several writers exactly one succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        partial.write_bytes(content)
        _sync(partial)
        os.link(partial, path)  # fails where `replace` would overwrite
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    _sync(path.parent)
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """The name of a file to write, in the same folder and nobody else's; at the end of the block it is synced and becomes `path`.

    Folders are made as needed. An exception in the block leaves no trace. A killed writer leaves a hidden file that no reader takes for anything.
    """
    folders = [path.parent, *(folder.parent for folder in path.parents if not folder.exists())]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    for folder in folders:  # the name has to last too, and those of the folders made just now
        _sync(folder)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
