"""What `robustclip train` can be told: one frozen model, the command line that is made from its fields, so
that neither forgets the other, and the cap on a run's cost in charged image passes (F + 2 B), to compare
methods at the same cost. Text passes are counted, not capped.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from pydantic.fields import FieldInfo

from prompts_store.manifest import Name
from robustclip import DEFAULT_BACKBONE
from robustclip.errors import InvalidInput
from robustclip.models import Clip
from robustclip.threat import LinfRadius
from training.commands import DEFAULT_RUNS, default_store, option_of, read_fields, separated, shown
from training.learning.losses import TowerPrecision
from training.learning.objectives import OBJECTIVES, AnyMethod, AnyObjective
from training.learning.tuning.selection import Selection, load_selection
from training.threats import THREAT_LEVELS
from training.threats.base import PlainThreat, threat_level

_OBJECTIVE = "objective."


def _read(value: object) -> object:
    return load_selection(Path(value)) if isinstance(value, str) else value


class TrainSettings(BaseModel, frozen=True, extra="forbid"):
    """A training run. Everything that decides its result, and where it is put."""

    objective: AnyObjective
    data: Path = Field(
        description="folder with a `train` split: Parquet files with classes.txt, or class folders of "
        "pictures"
    )
    name: Name = Field(description="name of the published set: small letters, digits and dashes")
    backbone: str = Field(
        DEFAULT_BACKBONE,
        description="an embedded CLIP, an open_clip architecture, or hf-hub:owner/repository",
    )
    pretrained: str | None = Field(
        None, description="open_clip tag or weights file of an architecture that is not embedded"
    )
    device: str | None = Field(
        None,
        description="torch device, such as cuda; none takes a GPU where there is one, each process its own",
    )
    precision: TowerPrecision = Field(
        "float32",
        description="of the towers in the passes that prompts learn from: bf16 or float32; prompts are "
        "float32",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="parts that a process computes its pictures of a step in, again in the backward: less "
        "memory",
    )
    shots: int = Field(0, ge=0, description="pictures a class, drawn by the seed; 0 takes all")
    classes: Path | None = Field(
        None,
        description="some classes alone: base or new, halves of the labels, or a file of names, one a line; "
        "none: all",
    )
    allow_fewer_shots: bool = Field(
        False, description="classes with fewer pictures than shots give what they have"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="decides shots, first vectors, attack starts, order")
    validate_at: Annotated[tuple[PlainThreat, ...], BeforeValidator(separated)] = Field(
        ("clean",),
        description="threat levels measured on the held-out tenth of train, of "
        + ", ".join(name for name in THREAT_LEVELS if not threat_level(name).needs),
    )
    validate_eps: LinfRadius = Field(1 / 255, gt=0, description="their radius")
    validate_limit: int = Field(0, ge=0, description="at most so many held-out pictures; 0 takes all")
    store: Path = Field(default_factory=default_store, description="where the set is published")
    activate: bool = Field(False, description="let services that watch the store serve it at once")
    runs: Path = Field(DEFAULT_RUNS, description="checkpoints and banks; safe to delete")
    max_passes: int = Field(
        0,
        ge=0,
        description="cap on image passes, preparing included, a backward counted as 2: lowers epochs; 0: no "
        "cap",
    )
    fresh: bool = Field(False, description="forget the checkpoint of an equal run instead of resuming it")
    selection: Annotated[Selection | None, BeforeValidator(_read)] = Field(
        None,
        description="record of `robustclip select`: its winner's settings, of which those that were chosen "
        "stay as they are",
    )
    note: str = Field("", description="words for the manifest")

    def borrowed(self, clip: Clip) -> str | None:
        """What is to be said of a selection that was made for another CLIP, if one was."""
        return None if self.selection is None else self.selection.borrowed_by(clip)


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field, parameters of objectives under the names that manifests give them; each help
    shows the default.
    """
    general = parser.add_argument_group("run")
    for name, field in TrainSettings.model_fields.items():
        if name != "objective":
            _add(general, option_of(name), name, {"": field})
    general.add_argument(
        "--resume",
        action="store_false",
        dest="fresh",
        default=None,
        help="go on from the checkpoint of an equal run (the default)",
    )
    group = parser.add_argument_group(
        "objective", "How prompts are learned. Options of a kind that does not know them are refused."
    )
    group.add_argument(
        "--objective.kind",
        choices=sorted(OBJECTIVES),
        metavar="KIND",
        help=f"one of {', '.join(sorted(OBJECTIVES))}",
    )
    names = dict.fromkeys(
        name for model in OBJECTIVES.values() for name in model.model_fields if name != "kind"
    )
    for name in names:
        owners = {
            kind: model.model_fields[name] for kind, model in OBJECTIVES.items() if name in model.model_fields
        }
        _add(group, f"--{_OBJECTIVE}{name}", _OBJECTIVE + name, owners)


def read_settings(arguments: Mapping[str, Any]) -> TrainSettings:
    """The settings that parsed options mean. Raises InvalidInput that names the option at fault."""
    given = {name: value for name, value in arguments.items() if value is not None}
    objective = {
        name.removeprefix(_OBJECTIVE): given.pop(name) for name in list(given) if name.startswith(_OBJECTIVE)
    }
    if given.get("selection"):
        given["selection"] = record = load_selection(Path(given["selection"]))
        for name in objective:
            if name in record.over or (name == "kind" and objective[name] != record.objective[name]):
                raise InvalidInput(
                    "this was chosen by --selection.",
                    field=f"--{_OBJECTIVE}{name}",
                    help="Leave one of them out.",
                )
        objective = {**record.objective, **objective}
    elif "kind" not in objective:
        raise InvalidInput(
            f"expected one of {', '.join(sorted(OBJECTIVES))}.",
            field=f"--{_OBJECTIVE}kind",
            help="Or give --selection.",
        )
    return read_fields(TrainSettings, {**given, "objective": objective}, command="train", named=_option)


def _option(field: str) -> str:
    first, *_ = path = field.split("/")
    return f"--{'.'.join(path)}" if first == "objective" else option_of(first)


def _add(group: Any, option: str, target: str, owners: Mapping[str, FieldInfo]) -> None:
    field = next(iter(owners.values()))
    if field.is_required():
        group.add_argument(option, dest=target, required=True, metavar="VALUE", help=field.description)
    elif field.annotation is bool and not target.startswith(_OBJECTIVE):
        group.add_argument(
            option, dest=target, action="store_true", default=None, help=f"{field.description} (default: no)"
        )
    else:
        group.add_argument(option, dest=target, metavar="VALUE", help=_described(owners).replace("%", "%%"))


def _described(owners: Mapping[str, FieldInfo]) -> str:
    """What an option means and its default, for each group of kinds that mean the same by it."""
    meanings: dict[str, dict[str, FieldInfo]] = {}
    for kind, field in owners.items():
        meanings.setdefault(field.description or "", {})[kind] = field
    parts: list[str] = []
    for meaning, kinds in meanings.items():
        named = ", ".join(kinds) if len(kinds) < len(OBJECTIVES) else ""
        parts.append(
            f"{named}: {meaning} (default: {_defaults(kinds)})"
            if named
            else f"{meaning} (default: {_defaults(kinds)})"
        )
    return "; ".join(parts)


def _defaults(owners: Mapping[str, FieldInfo]) -> str:
    """The default that most kinds share, and who has another."""
    texts = {
        kind: shown(field.get_default(call_default_factory=True, validated_data={}))
        for kind, field in owners.items()
    }
    usual = max(texts.values(), key=list(texts.values()).count)
    return "; ".join([usual, *(f"{kind} {default}" for kind, default in texts.items() if default != usual)])


def within(objective: AnyMethod, *, pictures: int, max_passes: int) -> AnyMethod:
    """The objective with as many of its epochs as the cap allows; its schedule then fits them. 0 is no cap.

    InvalidInput if not even one epoch fits.
    """
    if not max_passes or objective.bill(pictures).charged <= max_passes:
        return objective
    fitting = [
        epochs
        for epochs in range(1, objective.epochs)
        if _shortened(objective, epochs).bill(pictures).charged <= max_passes
    ]
    if not fitting:
        least = _shortened(objective, 1).bill(pictures).charged
        raise InvalidInput(
            f"one epoch on {pictures} pictures takes {least:,} image passes, preparing included; "
            f"{max_passes:,} are allowed.",
            field="--max-passes",
            help="Allow more, or take fewer --shots.",
        )
    return _shortened(objective, max(fitting))


def _shortened(objective: AnyMethod, epochs: int) -> AnyMethod:
    return objective.model_copy(update={"epochs": epochs})
