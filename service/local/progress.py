"""What `robustclip probe` shows while it runs, on standard error: one live line on a terminal, plain lines
elsewhere if asked for.

Who presses Ctrl-C wants an answer now: the probe ends with what it has.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from robustclip.probing.events import (
    AttackFinished,
    AttackProgress,
    BracketMoved,
    Certified,
    CleanDecided,
    DiagnosticTaken,
    ProbeEvent,
    ProbeFinished,
    ProbeStarted,
    WitnessFound,
)
from robustclip.reports.report import ProbeReport
from robustclip.reports.wording import certificate_words
from robustclip.threat import radius_text

_SECONDS_BETWEEN_LINES = 1.0


def followed(probe_events: Iterable[ProbeEvent], *, lines: bool) -> ProbeReport:
    """Go through a probe and show it; `lines`: plain lines whatever standard error is."""
    console = Console(stderr=True)
    live = console.is_terminal and not lines
    due = 0.0
    with console.status("attacking") if live else _nothing() as status:
        for event in probe_events:
            if isinstance(event, ProbeFinished):
                return event.report
            words = in_words(event)
            if words is None or not (live or lines):
                continue
            if status is not None:
                status.update(words)
            elif not isinstance(event, AttackProgress) or time.monotonic() >= due:
                due = time.monotonic() + _SECONDS_BETWEEN_LINES
                sys.stderr.write(f"{words}\n")
                sys.stderr.flush()
    raise AssertionError("a probe ends with its report")


def in_words(event: ProbeEvent) -> str | None:
    """A line for people; None for what the report says anyway."""
    match event:
        case ProbeStarted():
            return f"{event.attacks} attacks, {event.charged} charged passes at most"
        case CleanDecided():
            return f"clean: {event.clean.label} {event.clean.probability:.1%}"
        case AttackProgress():
            stage = "" if event.stage is None else f" {event.stage}"
            best = "" if event.margin is None else f" best margin {event.margin:.3f},"
            return f"{event.knowledge} {event.kind}{stage}:{best} {event.charged} charged passes"
        case WitnessFound():
            seen = "as PNG" if event.bits == "8" else "as float pixels"
            return (
                f"witness {seen}: {event.label!r} by {event.knowledge} {event.kind}, "
                f"{event.linf * 255:.4g}/255 a value"
            )
        case AttackFinished():
            return (
                f"{event.knowledge} {event.kind}: {'breaks it' if event.success else 'breaks nothing'}, "
                f"{event.charged} charged passes"
            )
        case BracketMoved():
            broken = (
                "nothing breaks it yet"
                if event.broken is None
                else f"{radius_text(event.broken, event.norm)} breaks it"
            )
            return f"smallest radius: {broken}, {radius_text(event.unbroken, event.norm)} withstood"
        case Certified():
            return f"certificate: {certificate_words(event.certificate)}"
        case DiagnosticTaken(diagnostic=found) if found.fired:
            return f"{found.severity} flag {found.id} {found.name}: {found.number:.3g}"
        case _:
            return None


@contextmanager
def interruptible() -> Generator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one interrupts at once. Only the main thread hears signals."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def press(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _nothing() -> Generator[None]:
    yield None
