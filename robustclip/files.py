"""Files that are whole or absent, whoever writes at the same time and whenever a writer is killed. Every
package writes through these.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Generator
from pathlib import Path

PARTIAL = ".partial"  # how the name of a file ends that is being written; its name begins with a dot


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: a reader sees the old file or the new, a power cut leaves one of
    them.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_once(path: Path, content: bytes) -> bool:
    """Put `content` at `path` unless there is a file already; whether it was put. Of several writers exactly
    one succeeds.
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
    """The name of a file to write, in the same folder and nobody else's; at the end of the block it is synced
    and becomes `path`.

    Folders are made as needed. An exception in the block leaves no trace. A killed writer leaves a hidden
    file that no reader takes for anything.
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


@contextlib.contextmanager
def claimed(path: Path, *, wait: bool) -> Generator[bool]:
    """Whether the work that ends in the file `path` is ours until the end of the block: of all who claim it
    at once exactly one gets it.

    Who doesn't `wait` for another is told so at once. A claim is a lock on a hidden file beside `path`; it
    ends with the process, however that ends. Look for `path` again inside the block: whoever was waited for
    may have finished it.
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
        os.close(descriptor)  # the one before us has removed it: others lock a new file by now
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
