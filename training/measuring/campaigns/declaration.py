"""A table as it is declared, in TOML: methods x defenses x data sets x seeds, what is measured of them, and
the cap on training that all share.

`training/results/*.toml` are such files. Settings that were chosen come from records of `robustclip select`,
which are checked when a table is read.
"""

import itertools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from prompts_store.manifest import NAME_PATTERN
from robustclip.attacks import Precision, Preset
from robustclip.defenses import parse_defenses
from robustclip.errors import InvalidInput, invalid_input
from training.data.sources import Source
from training.learning.losses import TowerPrecision
from training.learning.objectives import AnyMethod, AnyObjective
from training.learning.tuning.config import TrainSettings
from training.learning.tuning.selection import Selection, load_selection
from training.measuring.campaigns.campaign import Entry, Round
from training.measuring.evaluation.question import NO_DEFENSE, Question, Seed
from training.threats import Threat
from training.threats.base import Effort, threat_level

_METHOD: TypeAdapter[AnyMethod] = TypeAdapter(AnyObjective)
MethodName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Method(_Declared):
    """A row of the table: a prompt set that is there, or an objective to learn by, whose parameters a
    `selection` may hold (beside the table).
    """

    prompt_set: str | None = None
    objective: dict[str, JsonValue] = {}
    selection: Path | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.prompt_set is None) != bool(self.objective or self.selection):
            raise ValueError("a method is either a prompt_set, or an objective, a selection or both")
        return self


class Measure(Effort):
    """Columns: threat levels and radii; of some methods, defenses, data sets and seeds alone, or of all; on
    at most `limit` test pictures, 0 for all.

    The effort is that of `robustclip evaluate`; where it is left out, `strength` and `search` are those of
    the whole table.
    """

    threats: tuple[Threat, ...] = Field(min_length=1)
    methods: tuple[str, ...] | None = None
    defenses: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None
    seeds: tuple[Seed, ...] | None = None
    limit: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _surrogates_are_t0b_s(self) -> Self:
        served = {"surrogates" in threat_level(threat).needs for threat in self.threats}
        if served != {bool(self.surrogates)}:
            raise ValueError(
                "T0b is a measure of its own with the `surrogates` that it attacks, and they serve nothing "
                "else"
            )
        return self


class Declaration(_Declared):
    """The whole file. `against`: methods that the others are compared with, picture by picture; none: all
    with all. `defenses`: chains by names.
    """

    title: str
    says: str = ""
    backbone: str
    pretrained: str | None = None
    preset: str = "local"
    data: tuple[str, ...] = Field(min_length=1)
    shots: int = Field(16, ge=0)
    allow_fewer_shots: bool = False
    seeds: tuple[Seed, ...] = Field(min_length=1)
    max_passes: int = Field(ge=1)
    precision: TowerPrecision = "float32"
    strength: Preset = "standard"
    search: Precision = "float32"
    batch: int = Field(64, ge=1, le=4096)
    methods: dict[MethodName, Method] = Field(min_length=1)
    against: tuple[str, ...] = ()
    defenses: dict[MethodName, str] = Field({NO_DEFENSE: NO_DEFENSE}, min_length=1)
    measures: tuple[Measure, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known: dict[str, tuple[Any, ...]] = {
            name: tuple(getattr(self, name)) for name in ("methods", "defenses", "data", "seeds")
        }
        for measure, (field, names) in itertools.product(self.measures, known.items()):
            for name in getattr(measure, field) or ():
                if name not in names:
                    raise ValueError(
                        f"a measure names {name!r}, which is not among {field}: {', '.join(map(str, names))}"
                    )
        for name in self.against:
            if name not in self.methods:
                raise ValueError(
                    f"`against` names {name!r}, which is not among methods: {', '.join(self.methods)}"
                )
        return self


class Table(_Declared):
    """A declaration with the objectives that its methods mean, None where a prompt set is there; `name` is
    that of the file.
    """

    name: str
    declared: Declaration
    objectives: dict[str, tuple[Any, Selection | None] | None]


def read_table(path: Path) -> Table:
    """InvalidInput names the file and the field at fault, be it in the record of a selection."""
    values: dict[str, Any] = {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        declared = Declaration.model_validate(values)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(
            f"can't be read as a table's declaration: {error}",
            field=str(path),
            help="training/results has examples.",
        ) from error
    except ValidationError as error:
        raise invalid_input(error, values, field=str(path)) from error
    for name, chain in declared.defenses.items():
        parse_defenses(chain, field=f"{path}/defenses/{name}")
    objectives = {
        name: _objective(method, path, f"{path}/methods/{name}") for name, method in declared.methods.items()
    }
    return Table(name=path.stem, declared=declared, objectives=objectives)


def rounds_of(
    table: Table, sources: Mapping[str, Source], *, store: Path, runs: Path, device: str
) -> list[Round]:
    """All that is to be learned and measured on the data sets, by name, seed by seed: a table that is stopped
    early has whole seeds.
    """
    declared, places = table.declared, {"store": store, "runs": runs}
    same = {"backbone", "pretrained", "shots", "allow_fewer_shots", "max_passes", "precision"}
    trained = declared.model_dump(include=same) | places
    judged = declared.model_dump(include={"pretrained", "strength", "search", "batch"}) | {
        "backbones": [declared.backbone],
        "prompt_sets": ["-"],
        "device": device,
        **places,
    }
    rounds: list[Round] = []
    for seed, (data, source) in itertools.product(declared.seeds, sources.items()):
        entries: list[Entry] = []
        for label, method in declared.methods.items():
            learned = table.objectives[label]
            if learned is None:
                entries.append(Entry(label, method.prompt_set or ""))
                continue
            objective, selection = learned
            name = f"{table.name}-{data}-{label}-{seed}".lower().replace("_", "-")
            own = {"objective": objective, "selection": selection, "name": name, "seed": seed}
            values = {**trained, **own, "data": source.folder}
            try:
                entries.append(Entry(label, name, TrainSettings.model_validate(values)))
            except ValidationError as error:
                raise invalid_input(error, values, field=f"{table.name}/methods/{label}") from error
        asked = {**judged, "data": [source], "seeds": [seed]}
        questions = [
            (
                Question.model_validate({**asked, **_asked_of(measure, declared)}),
                tuple(
                    label for label in declared.methods if measure.methods is None or label in measure.methods
                ),
            )
            for measure in declared.measures
            if (measure.seeds is None or seed in measure.seeds)
            and (measure.data is None or data in measure.data)
        ]
        rounds.append(Round(data, seed, tuple(entries), tuple(questions)))
    return rounds


def _asked_of(measure: Measure, declared: Declaration) -> dict[str, Any]:
    own = measure.model_dump(include={"threats", "limit", *Effort.model_fields}, exclude_unset=True)
    names = declared.defenses if measure.defenses is None else measure.defenses
    return own | {"defenses": [declared.defenses[name] for name in names]}


def _objective(method: Method, path: Path, field: str) -> tuple[AnyMethod, Selection | None] | None:
    if method.prompt_set is not None:
        return None
    record = None if method.selection is None else load_selection(path.parent / method.selection)
    chosen: dict[str, Any] = {} if record is None else record.objective
    for name in method.objective:
        if record is not None and (
            name in record.over or (name == "kind" and method.objective[name] != chosen["kind"])
        ):
            raise InvalidInput(
                "this was chosen by the selection.",
                field=f"{field}/objective/{name}",
                help="Leave one of them out.",
            )
    values = {**chosen, **method.objective}
    try:
        return _METHOD.validate_python(values), record
    except ValidationError as error:
        raise invalid_input(error, values, field=f"{field}/objective") from error
