"""Attack one decision of the deployed chain and say what came of it.

The victim is exactly what `/classify` serves: prompt set, labels, defense, encoder. Gradients run in float32
torch; every candidate is judged again in a fresh forward of the serving path, as float pixels and from its
PNG. A verdict is the worst case over attacks, never an average.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from robustclip.attacks.events import Meter
from robustclip.deployed import DeployedClassifier
from robustclip.probing.events import ProbeEvent, ProbeFinished
from robustclip.probing.options import ProbeOptions
from robustclip.probing.session import Session
from robustclip.reports.report import ProbeReport
from robustclip.types import DIRECT, DeviceAccess


def probe(
    victim: DeployedClassifier,
    pixels: Tensor,
    options: ProbeOptions,
    *,
    access: DeviceAccess = DIRECT,
    sources: Sequence[DeployedClassifier] = (),
    meter: Meter | None = None,
) -> ProbeReport:
    """Attack the victim's decision about one picture [3, S, S]; deterministic given `options.seed`, unless a
    deadline cuts it.

    No pass goes past `access` (a service takes its device lock there); only the text features of labels are
    made without it, by whoever gave the victim its `text`. `sources` are other prompt sets over the same
    labels, whose gradients are tried too. `meter` says when to stop: the report then holds what was found so
    far. Raises InvalidInput for options that don't fit the victim, and DeadlineExceeded where not even the
    clean decision was reached.
    """
    for event in events(victim, pixels, options, access=access, sources=sources, meter=meter):
        if isinstance(event, ProbeFinished):
            return event.report
    raise AssertionError("a probe ends with its report")


def events(
    victim: DeployedClassifier,
    pixels: Tensor,
    options: ProbeOptions,
    *,
    access: DeviceAccess = DIRECT,
    sources: Sequence[DeployedClassifier] = (),
    meter: Meter | None = None,
) -> Iterator[ProbeEvent]:
    """The same probe, telling what happens; the last event has the report. Stopping the iterator stops the
    probe.
    """
    return Session(victim, pixels[None], options, access, tuple(sources), meter or Meter()).events()
