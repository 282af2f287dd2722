"""Who may compute when: a lock for the device that lets the most urgent in first, and the number of CPUs."""

import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Priority(IntEnum):
    """Lower goes first."""

    CLASSIFY = 0
    TEXT = 1
    PROBE = 2
    GATE = 3


class DeviceLock:
    """A mutex whose next owner is the most urgent waiter, first come first served among equals.

    `threading.Lock` promises no order: a probe that takes the lock for one gradient step after another would
    starve classification. `on_wait(priority, seconds)` gets the time that each owner waited. Not reentrant.
    """

    def __init__(self, on_wait: Callable[[Priority, float], None] = lambda priority, seconds: None) -> None:
        self._on_wait = on_wait
        self._condition = threading.Condition()
        self._busy = False
        self._arrivals = itertools.count()
        self._waiting: list[tuple[Priority, int]] = []

    def at(self, priority: Priority) -> "Turn":
        """A context manager for that urgency, which can be entered again and again."""
        return Turn(self, priority)

    @property
    def waiting(self) -> int:
        """How many threads wait now."""
        return len(self._waiting)

    def acquire(self, priority: Priority) -> None:
        started = time.perf_counter()
        with self._condition:
            ticket = (priority, next(self._arrivals))
            heapq.heappush(self._waiting, ticket)
            self._condition.wait_for(lambda: not self._busy and self._waiting[0] == ticket)
            heapq.heappop(self._waiting)
            self._busy = True
        self._on_wait(priority, time.perf_counter() - started)

    def release(self) -> None:
        with self._condition:
            self._busy = False
            self._condition.notify_all()


@dataclass(frozen=True)
class Turn:
    """`with device.at(Priority.TEXT): ...`"""

    device: DeviceLock
    priority: Priority

    def __enter__(self) -> None:
        self.device.acquire(self.priority)

    def __exit__(self, *error: object) -> None:
        self.device.release()


class Turns:
    """The device for work in pieces: `next_piece` lets others have it and takes it again; the end of the
    block gives it back.

    The device is taken at the first piece, not before: a thread that only waits for another thread's result
    must not hold it.
    """

    def __init__(self, device: DeviceLock, priority: Priority) -> None:
        self._device = device
        self._priority = priority
        self._held = False

    def next_piece(self) -> None:
        self._give_back()
        self._device.acquire(self._priority)
        self._held = True

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._held:
            self._held = False
            self._device.release()


def available_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs that this process may use, by its affinity mask and the quota of its container (cgroup v2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, _, period = quota.read_text().partition(" ")
    except OSError:
        return count
    return count if share == "max" else max(1, min(count, round(int(share) / int(period))))


def available_memory(group: Path = Path("/sys/fs/cgroup"), table: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that this process may still take, by machine and container (cgroup v2); None if unknown."""
    found: list[int] = []
    try:
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            found.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return min(found, default=None)
