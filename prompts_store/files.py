"""Bounded reads, and one writer at a time across processes."""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Generator
from pathlib import Path

from robustclip.errors import InvalidInput, PromptSetRefused, StoreBusy, StoreFull, StoreReadOnly
from robustclip.files import PARTIAL, write_atomically

_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL = {errno.ENOSPC, errno.EDQUOT}
PATIENCE = 5.0  # seconds that a writer waits for another; a set of 64 MiB takes less than one to write
_POLL = 0.02


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step, and remove what killed writers left. Call it under `writing`."""
    for leftover in path.parent.glob(f".*{PARTIAL}"):  # under the lock no other writer is at work
        leftover.unlink()
    write_atomically(path, data)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of a plain file, at most `max_bytes`, even if it changes meanwhile.

    Raises FileNotFoundError, or PromptSetRefused: `not-a-file` for links, folders and devices, `unreadable`,
    and `too-large` before anything is read.
    """
    if path.parent.is_symlink():
        raise _unreadable(path.parent, "not-a-file", "is a link")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "not-a-file" if error.errno == errno.ELOOP else "unreadable"
        raise _unreadable(path, reason, f"can't be read: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(path, "not-a-file", "is a folder or a device")
        size = status.st_size
        if size <= max_bytes:
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
            if len(data) <= max_bytes:
                return data
            size = len(data)
    finally:
        os.close(descriptor)
    raise PromptSetRefused(
        f"expected at most {max_bytes} bytes, found {size}.", reason="too-large", field=path.name
    )


@contextlib.contextmanager
def writing(root: Path) -> Generator[None]:
    """Hold the store's writer lock; the kernel frees it when a process dies.

    Raises StoreBusy if another writer holds it for longer than PATIENCE, StoreReadOnly if the file system
    refuses, StoreFull if it has no room, InvalidInput if `root` is no folder.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("a") as lock:
            _take(lock.fileno(), root)
            yield
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidInput(
            f"{root} is no folder.", field="--store", help="Name the store's folder."
        ) from error
    except OSError as error:
        if error.errno in _READ_ONLY:
            raise StoreReadOnly(
                f"{root} can't be written: {error.strerror}.",
                field="--store",
                help="Mount it writable, or name another.",
            ) from error
        if error.errno in _FULL:
            raise StoreFull(
                f"{root} can't be written: {error.strerror}. Nothing has changed.",
                field="--store",
                help="Free space there; `robustclip prompts prune` removes old versions.",
            ) from error
        raise


def _take(lock: int, root: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise StoreBusy(
                    f"another process has been writing to {root} for {PATIENCE:g} seconds.",
                    field="--store",
                    help="Try again; if it hangs, end the process that holds .lock in that folder.",
                ) from None
        time.sleep(_POLL)


def _unreadable(path: Path, reason: str, what: str) -> PromptSetRefused:
    return PromptSetRefused(
        f"{path.name} {what}.", reason=reason, field=path.name, help="Put a plain, readable file there."
    )
