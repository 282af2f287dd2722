"""Write files so that each is complete or absent, with several writers and when a writer is killed."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Generator
from pathlib import Path

PARTIAL = ".partial"  # suffix of unfinished files, whose names begin with a dot


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: readers, and a power cut, see the old file or the new one."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_once(path: Path, content: bytes) -> bool:
    """Put `content` at `path` unless a file exists there; returns whether it did.

    Of several writers exactly one succeeds.
    """
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
    """The name of a new file in the same folder; after the block it is synced and becomes `path`.

    Missing folders are made. An exception in the block leaves no trace; a killed writer leaves a hidden file
    that no reader opens.
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
    for folder in folders:  # the file's name must survive a power cut, too, and those of new folders
        _sync(folder)


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool) -> Generator[bool]:
    """Whether this process may make the file `path`: of all that claim it at once, exactly one may.

    `wait` for another process or return False at once. The claim is a lock on a hidden file beside `path` and
    ends with the process. Check for `path` again inside the block: the process before may have finished it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.claim")
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        except BaseException:
            os.close(descriptor)
            raise
        if _is_open(descriptor, name):
            break
        os.close(descriptor)  # its last holder removed the lock file, so others may lock a new one
    try:
        yield True
    finally:
        name.unlink(missing_ok=True)
        os.close(descriptor)


def _is_open(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
