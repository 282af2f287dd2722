"""Reports of real probes on `tiny`, for tests of what is made of reports."""

from pathlib import Path
from typing import Any, NamedTuple

from probing import LABELS, options, picture, victim

from robustclip.models.clip import Clip
from robustclip.probing.run import probe
from robustclip.reports.report import ProbeReport
from robustclip.types import Pixels


class Probed(NamedTuple):
    report: ProbeReport
    clean: Pixels


def probed(
    clip: Clip,
    *,
    radii: tuple[float, ...] = (8.0,),
    labels: tuple[str, ...] = LABELS,
    defense: str = "none",
    seed: int = 7,
    **asked: Any,
) -> Probed:
    """PGD-5 at radii in 8-bit levels on a picture of noise, with everything that a report can hold."""
    clean = picture(clip, seed)
    attacks = [
        {"kind": "pgd", "ball": {"kind": "linf", "radius": radius / 255}, "steps": 5} for radius in radii
    ]
    report = probe(
        victim(clip, defense, labels),
        clean,
        options(**({"attacks": attacks, "eot": 2, "fresh_draws": 8} | asked)),
    )
    return Probed(report, clean)


def stored(report: ProbeReport, path: Path) -> Path:
    """The report as `robustclip probe --json` prints it, in a file."""
    path.write_text(report.model_dump_json(by_alias=True))
    return path
