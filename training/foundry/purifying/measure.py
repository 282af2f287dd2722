"""What purifying networks are worth on any labelled pictures: `robustclip train-purifiers --measure`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.purifiers import NetworkKind, digest_of, load_purifier
from robustclip.purifiers.denoiser import Denoiser
from robustclip.purifiers.super_resolver import SuperResolver
from robustclip.types import Progress
from training.data.sampling import balanced_subset, open_split
from training.foundry.purifying.exam import Reading, exam_of, examine, shortcomings

SUBSET_SEED = 0


class NetworkMeasurement(BaseModel):
    """What a network is worth on some pictures."""

    weights: str
    digest: str
    parameters: int
    pictures: int
    pictures_digest: str
    readings: dict[str, Reading]
    no_better: list[str]


def measure(
    kinds: Sequence[NetworkKind],
    weights: str,
    clip: Clip,
    data: Path,
    *,
    split: str,
    limit: int,
    progress: Progress,
) -> dict[NetworkKind, NetworkMeasurement]:
    """The readings of networks on the pictures of a split; `limit` > 0 takes so many, classes balanced."""
    every = open_split(data, split)
    pictures = every.subset(balanced_subset(every, limit, SUBSET_SEED), split)
    exam = exam_of(clip, pictures)
    measured: dict[NetworkKind, NetworkMeasurement] = {}
    for kind in kinds:
        named = str(Path(weights) / f"{kind}.json") if Path(weights).is_dir() else weights
        network = load_purifier(kind, named).to(clip.device)
        if not isinstance(network, SuperResolver | Denoiser):
            raise InvalidInput(
                "networks of others enlarge by any scale; only ours are measured.", field="--weights"
            )
        done = 0

        def count(rows: int, kind: NetworkKind = kind) -> None:
            nonlocal done
            done += rows
            progress(done, exam.count, f"measuring the {kind}")

        readings = examine(network, exam, on_rows=count)
        measured[kind] = NetworkMeasurement(
            weights=weights,
            digest=digest_of(kind, named),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            pictures=exam.count,
            pictures_digest=pictures.digest,
            readings=readings,
            no_better=shortcomings(readings),
        )
    return measured


def show(facts: dict[str, Any], measured: dict[NetworkKind, NetworkMeasurement], *, as_json: bool) -> None:
    """Print a table a network, or everything as one JSON object."""
    if as_json:
        networks = {
            kind: each.model_dump(exclude={"readings"})
            | {"readings": {name: reading._asdict() for name, reading in each.readings.items()}}
            for kind, each in measured.items()
        }
        print(json.dumps(facts | {"networks": networks}, indent=2))
        return
    for kind, each in measured.items():
        table = Table(
            title=f"{kind}, {each.parameters:,} parameters, {each.pictures} pictures", title_justify="left"
        )
        for column in ("pictures", "PSNR, dB", "named rightly, %"):
            table.add_column(column, justify="left" if column == "pictures" else "right")
        for name, reading in each.readings.items():
            table.add_row(
                name, "" if reading.psnr is None else f"{reading.psnr:.2f}", f"{reading.accuracy:.1f}"
            )
        Console().print(table)
        for complaint in each.no_better:
            print(f"no better than nothing: {complaint}")
