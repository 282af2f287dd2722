"""What purifying networks are worth on any labelled pictures: `robustclip train-purifiers --measure`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.purifiers import NetworkKind, digest_of, load_purifier
from robustclip.purifiers.denoiser import Denoiser
from robustclip.purifiers.super_resolver import SuperResolver
from robustclip.types import Progress
from training.data.sampling import balanced_subset, open_split
from training.foundry.purifying.exam import exam_of, examine, shortcomings

SUBSET_SEED = 0

Facts = dict[str, Any]  # as JSON has them


def measure(
    kinds: Sequence[NetworkKind],
    weights: str,
    clip: Clip,
    data: Path,
    *,
    split: str,
    limit: int,
    progress: Progress,
) -> dict[NetworkKind, Facts]:
    """The readings of networks on the pictures of a split; `limit` > 0 takes so many, classes balanced."""
    every = open_split(data, split)
    pictures = every.subset(balanced_subset(every, limit, SUBSET_SEED), split)
    exam = exam_of(clip, pictures)
    measured: dict[NetworkKind, Facts] = {}
    for kind in kinds:
        named = str(Path(weights) / f"{kind}.json") if Path(weights).is_dir() else weights
        network = load_purifier(kind, named).to(clip.device)
        if not isinstance(network, SuperResolver | Denoiser):
            raise InvalidInput(
                "networks of others enlarge by any scale; only ours are measured.", field="--weights"
            )
        readings = examine(network, exam, progress=progress, what=f"measuring the {kind}")
        measured[kind] = {
            "weights": weights,
            "digest": digest_of(kind, named),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "pictures": exam.count,
            "pictures_digest": pictures.digest,
            "no_better": shortcomings(readings),
            "readings": {name: reading._asdict() for name, reading in readings.items()},
        }
    return measured


def show(measured: dict[NetworkKind, Facts]) -> None:
    """A table a network."""
    for kind, facts in measured.items():
        title = f"{kind}, {facts['parameters']:,} parameters, {facts['pictures']} pictures"
        table = Table(title=title, title_justify="left")
        for column in ("pictures", "PSNR, dB", "named rightly, %"):
            table.add_column(column, justify="left" if column == "pictures" else "right")
        for name, reading in facts["readings"].items():
            psnr = "" if reading["psnr"] is None else f"{reading['psnr']:.2f}"
            table.add_row(name, psnr, f"{reading['accuracy']:.1f}")
        Console().print(table)
        for complaint in facts["no_better"]:
            print(f"no better than nothing: {complaint}")
