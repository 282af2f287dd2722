"""Settings that compete: which they are, how they are trained and judged, and what follows from the numbers.
`select.py` asks and prints.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError
from torch import Tensor

from prompts_store.manifest import ClipIdentity
from robustclip import DEFAULT_BACKBONE
from robustclip.digests import json_digest
from robustclip.errors import InvalidInput, invalid_input
from robustclip.threat import LinfRadius
from training.commands import DEFAULT_RUNS
from training.data.sampling import HELD_OUT, balanced_subset
from training.data.sources import Source
from training.learning.losses import TowerPrecision
from training.learning.objectives import AnyMethod, AnyObjective
from training.learning.tuning.config import TrainSettings
from training.learning.tuning.selection import (
    Ahead,
    By,
    CandidateSettings,
    JudgedOn,
    Number,
    Selection,
    best,
    combined,
    level_of,
)
from training.measuring.campaigns.campaign import Entry, Round
from training.measuring.campaigns.ledger import Opened
from training.measuring.evaluation.comparison import percentile_interval, redrawn_means
from training.measuring.evaluation.question import SUBSET_SEED, Question, Seed
from training.measuring.evaluation.rows import Row
from training.measuring.schema.files import Gap, Training

_METHOD: TypeAdapter[AnyMethod] = TypeAdapter(AnyObjective)


class Choosing(BaseModel, frozen=True, extra="forbid"):
    """What candidates have in common: how they are trained, and what they are judged on and by. The fields
    are options of the command.
    """

    data: tuple[Path, ...] = Field(
        min_length=1,
        description="training pictures, as `robustclip train` takes them; several with commas or repeated",
    )
    classes: Path | None = Field(None, description="some classes alone: base, new or a file of names")
    backbone: str = Field(
        DEFAULT_BACKBONE,
        description="an embedded CLIP, an open_clip architecture, or hf-hub:owner/repository",
    )
    pretrained: str | None = Field(
        None, description="open_clip tag or weights file of an architecture that is not embedded"
    )
    shots: int = Field(16, ge=0, description="pictures a class; 0 takes all")
    allow_fewer_shots: bool = Field(
        False, description="classes with fewer pictures than shots give what they have"
    )
    seeds: tuple[Seed, ...] = Field(
        (0,), min_length=1, description="each candidate is trained once with each"
    )
    max_passes: int = Field(
        0, ge=0, description="the same cap on image passes for every candidate, as in `robustclip train`"
    )
    precision: TowerPrecision = Field(
        "float32", description="of the towers in the passes that prompts learn from: bf16 or float32"
    )
    eps: LinfRadius = Field(1 / 255, gt=0, description="radius of the attack on held-out pictures")
    steps: int = Field(20, ge=1, le=1000, description="of T2, where it is the attack")
    limit: int = Field(
        256, ge=0, description="at most so many held-out pictures of each data set; 0 takes all"
    )
    batch: int = Field(64, ge=1, le=4096, description="of them at once")
    by: By = Field(
        "T2",
        description="the score: accuracy under T2 or another threat level, or harmonic, the harmonic mean of "
        "T2's and clean accuracy",
    )
    keep_first: bool = Field(
        False, description="the first candidate stays unless the best is ahead of it by an interval above 0"
    )
    runs: Path = Field(
        DEFAULT_RUNS, description="where all is kept, prompt sets of candidates too; safe to delete"
    )


class Tried(NamedTuple):
    """A candidate: what sets it apart, in words and as values, and the whole objective."""

    label: str
    settings: dict[str, JsonValue]
    objective: AnyMethod


def candidates(fixed: Mapping[str, str], tried: Sequence[Mapping[str, str]]) -> list[Tried]:
    """One for each of `tried` parameters beside the `fixed` ones. InvalidInput for what no method accepts,
    for equals, and for one alone.
    """
    if len(tried) < 2:
        raise InvalidInput(
            "expected two candidates or more.",
            field="--over",
            help="Name values with --over NAME=A,B, or candidates one by one.",
        )
    over = list(dict.fromkeys(name for own in tried for name in own))
    found: list[Tried] = []
    for own in tried:
        label = ",".join(f"{name}={value}" for name, value in own.items())
        values = {**fixed, **own}
        try:
            objective = _METHOD.validate_python(values)
        except ValidationError as error:
            complaint = invalid_input(error, values)
            raise InvalidInput(f"{complaint.field}: {complaint.message}", field=f"--over {label}") from error
        if any(objective == other.objective for other in found):
            raise InvalidInput("this candidate is there already.", field=f"--over {label}")
        dumped = objective.model_dump(mode="json")
        found.append(Tried(label, {name: dumped[name] for name in over if name in dumped}, objective))
    return found


def rounds_of(choosing: Choosing, tried: Sequence[Tried], *, device: str) -> list[Round]:
    """Every candidate on every data set with every seed; the sets go into a store below `runs`, not into one
    that is served.
    """
    store = choosing.runs / "select" / "store"
    same = {"backbone", "pretrained", "classes", "shots", "allow_fewer_shots", "max_passes", "precision"}
    trained = choosing.model_dump(include={*same, "runs"})
    trained |= {"store": store, "validate_limit": choosing.limit}
    judged = choosing.model_dump(include={"pretrained", "steps", "limit", "batch", "runs"}) | {
        "backbones": [choosing.backbone],
        "threats": ["clean", level_of(choosing.by)],
        "eps": [choosing.eps],
        "store": store,
        "device": device,
    }
    names = [Source(folder=folder).name for folder in choosing.data]
    if len({*names}) < len(names):
        raise InvalidInput(
            f"two data sets have one name: {', '.join(names)}.",
            field="--data",
            help="Give folders of different names.",
        )
    rounds: list[Round] = []
    for seed, folder in itertools.product(choosing.seeds, choosing.data):
        source = Source(folder=folder, split=HELD_OUT, classes=choosing.classes, among="these")
        entries: list[Entry] = []
        for label, _, objective in tried:
            dumped = objective.model_dump(mode="json")
            about = [dumped, str(folder), str(choosing.classes), choosing.shots, seed]
            name = f"try-{json_digest(about)[:12]}"
            own = {"objective": objective, "data": folder, "name": name, "seed": seed}
            entries.append(Entry(label, name, TrainSettings.model_validate(trained | own)))
        own = {"prompt_sets": [entry.asked for entry in entries], "data": [source], "seeds": [seed]}
        question = Question.model_validate(judged | own)
        labels = tuple(entry.label for entry in entries)
        rounds.append(Round(source.name, seed, tuple(entries), ((question, labels),)))
    return rounds


def judged_on(choosing: Choosing, opened: Opened) -> tuple[JudgedOn, ...]:
    """The held-out pictures of each data set; InvalidInput where there are none."""
    found: list[JudgedOn] = []
    classes = None if choosing.classes is None else choosing.classes.name
    for folder in choosing.data:
        data, name = opened.pictures(folder, choosing.classes).validation, Source(folder=folder).name
        if not len(data):
            raise InvalidInput(
                f"nothing is held out of {name}: a tenth of each class is no picture.",
                field="--data",
                help="Bring more pictures a class.",
            )
        n = len(balanced_subset(data, choosing.limit, SUBSET_SEED))
        found.append(JudgedOn(data=name, split=data.split, classes=classes, digest=data.digest, n=n))
    return tuple(found)


def record(
    choosing: Choosing,
    tried: Sequence[Tried],
    opened: Opened,
    found: Sequence[Row | Training | Gap],
    *,
    command: str,
) -> Selection:
    """What follows from what was found. InvalidInput if every candidate failed."""
    rows = [row for row in found if isinstance(row, Row)]
    failed = [part for part in found if isinstance(part, Gap)]
    gaps = {gap.method: f"{gap.data}, seed {gap.seed}: {gap.why}" for gap in failed}
    first = tried[0].label
    judged: list[CandidateSettings] = []
    for label, settings, objective in tried:
        own = [row for row in rows if row.asked == label]
        numbers = tuple(Number.model_validate(row.result.part(*Number.model_fields)) for row in own)
        ahead = (
            None if label == first or {label, first} & {*gaps} else _ahead(rows, label, first, choosing.by)
        )
        judged.append(
            CandidateSettings(
                settings=settings,
                objective=objective.model_dump(mode="json"),
                numbers=numbers,
                ahead=ahead,
                why=gaps.get(label),
            )
        )
    winner = best(judged, choosing.by, keep_first=choosing.keep_first)
    if winner is None:
        raise InvalidInput(
            "every candidate failed: " + "; ".join(f"{label} on {why}" for label, why in gaps.items()),
            field="--over",
        )
    return Selection(
        clip=ClipIdentity.of(opened.clip(choosing.backbone, choosing.pretrained)),
        over=tuple(dict.fromkeys(name for candidate in tried for name in candidate.settings)),
        by=choosing.by,
        keep_first=choosing.keep_first,
        shots=choosing.shots,
        seeds=choosing.seeds,
        max_passes=choosing.max_passes,
        steps=choosing.steps,
        judged_on=judged_on(choosing, opened),
        candidates=tuple(judged),
        chosen=winner.settings,
        command=command,
    )


def _ahead(rows: Sequence[Row], label: str, first: str, by: By) -> Ahead:
    """The difference of two scores; seeds and pictures are drawn again alike for both."""
    names = list(dict.fromkeys(row.result.data for row in rows))
    values: list[float] = []
    drawn: list[Tensor] = []
    for asked in (label, first):
        clean, attacked = (
            [_correct(rows, asked, name, threat) for name in names] for threat in ("clean", level_of(by))
        )
        points = [
            (float(untouched.mean()), float(under.mean()))
            for untouched, under in zip(clean, attacked, strict=True)
        ]
        values.append(sum(combined(untouched, under, by) for untouched, under in points) / len(names))
        redrawn = zip(redrawn_means(clean), redrawn_means(attacked), strict=True)
        drawn.append(
            sum(
                (combined(untouched, under, by) for untouched, under in redrawn),
                Tensor([0.0]),
            )
            / len(names)
        )
    interval = percentile_interval(values[0] - values[1], drawn[0] - drawn[1])
    return Ahead(value=interval.value, low=interval.low, high=interval.high)


def _correct(rows: Sequence[Row], asked: str, data: str, threat: str) -> Tensor:
    """[S, n] 1 where a seed was right about a picture."""
    about = (asked, data, threat)
    own = [row for row in rows if (row.asked, row.result.data, row.result.threat) == about]
    return Tensor([row.correct.tolist() for row in own])
