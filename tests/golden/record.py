"""What users and their files depend on, as one JSON object: a change of layout must leave every value as it
is.

`PYTHONPATH=.:tests python -m golden.record` prints it. `snapshot.json` beside this file was printed at the
commit before the modules were sorted into rooms. Whoever changes a value on purpose prints it again, and says
in the changelog what breaks.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib.metadata import EntryPoint, entry_points
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from prompts_store.store import PromptStore
from robustclip import backbones
from robustclip.attacks import parse_attack
from robustclip.defenses import DEFENSES
from robustclip.models.clip import load_clip
from service.app import create_app
from service.config import ServeSettings
from training.data.sources import Source
from training.learning.objectives import OBJECTIVES
from training.learning.tuning.config import TrainSettings
from training.learning.tuning.run import open_run, open_training
from training.measuring.evaluation.question import Question, open_subjects
from training.measuring.evaluation.rows import cell_of

ROOT = Path(__file__).parents[2]
STORE = ROOT / "prompts_store" / "sets"
EXAMPLES = Path(backbones.__file__).parent / "examples"
_CLASSES = {"a_cat": ("chelsea", "horse"), "cup": ("coffee", "brick"), "rocket": ("rocket", "grass")}
_BACKBONES = ("mini-robust", "mini")
_LEVELS = ("clean", "T0", "T0b", "T1", "static", "T2", "black-box", "T3")  # a new one changes none of these
_PROSE = ("description", "summary")


def snapshot() -> dict[str, Any]:
    """Everything at once."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = _pictures(Path(folder))
        return {
            "fingerprints": {name: load_clip(name).fingerprint for name in _BACKBONES},
            "prompt_sets": _prompt_sets(),
            "cell_keys": list(_cell_keys(pictures)),
            "run_digests": _run_digests(pictures),
            "attacks": _attacks(),
            "defenses": {defense.model_fields["kind"].default: _parameters(defense) for defense in DEFENSES},
            "objectives": {kind: _parameters(objective) for kind, objective in sorted(OBJECTIVES.items())},
            "commands": {
                entry.name: _options(entry) for entry in sorted(entry_points(group="robustclip.commands"))
            },
            "openapi": _without_prose(
                create_app(ServeSettings(store={"path": Path(folder) / "store"})).openapi()
            ),
            "results_page": hashlib.sha256((ROOT / "training" / "RESULTS.md").read_bytes()).hexdigest(),
        }


def _pictures(folder: Path) -> Path:
    """Committed photographs as class folders: their bytes are the same everywhere, which an encoder's are
    not.
    """
    for split in ("train", "test"):
        for name, files in _CLASSES.items():
            (folder / split / name).mkdir(parents=True)
            for file in files:
                shutil.copy(EXAMPLES / f"{file}.png", folder / split / name)
    return folder


def _prompt_sets() -> dict[str, str]:
    """Every shipped version as the store reads it, and the digest of its tensors."""
    store, clips = PromptStore(STORE, read_only=True), [load_clip(name) for name in _BACKBONES]
    shipped: dict[str, str] = {}
    for path in sorted(STORE.glob("*/*/*.safetensors")):
        place, ref = path.parts[-3], f"{path.parts[-2]}@{path.stem}"
        clip = next(clip for clip in clips if place in ("any", clip.fingerprint[:8]))
        active = str(store.active(clip.fingerprint)[path.parts[-2]]) == ref
        shipped[f"{place} {ref}{' active' if active else ''}"] = store.load(ref, clip).prompts.digest()
    return shipped


def _cell_keys(pictures: Path) -> Iterator[str]:
    """The files in which an evaluation keeps its results: prompt sets, defenses, all threat levels, and
    unusual efforts.
    """
    common: dict[str, Any] = {
        "data": (Source(folder=pictures, split="test"),),
        "store": STORE,
        "runs": pictures / "runs",
        "surrogates": ("mini",),
        "limit": 4,
    }
    defenses = ("none", "jpeg:75", "resize_pad", "smoothing:0.1", "super_resolution")
    prompt_sets = ("handcrafted", "a picture of one {}.")
    questions = (
        Question(
            backbones=("mini-robust",),
            prompt_sets=prompt_sets,
            threats=_LEVELS,
            eps=("2/255",),
            defenses=defenses,
            **common,
        ),
        Question(
            backbones=("mini",),
            prompt_sets=prompt_sets[:1],
            threats=_LEVELS,
            eps=(0.5 / 255,),
            seeds=(7,),
            batch=8,
            **common,
        ),
        Question(
            backbones=("mini-robust",),
            prompt_sets=prompt_sets[:1],
            threats=("T2", "black-box"),
            eps=("1/255",),
            defenses=("jpeg:75", "resize_pad"),
            steps=10,
            draws=3,
            restarts=2,
            queries=50,
            search="bfloat16",
            **common | {"surrogates": ()},
        ),
    )
    for question in questions:
        for subject in open_subjects(question):
            for threat, within in question.conditions():
                path, _ = cell_of(question, subject, threat, within)
                yield f"{subject.backbone} {subject.prompt_set} {subject.defense} {threat} {path.name}"


def _run_digests(pictures: Path) -> dict[str, str]:
    """What names a training's checkpoint, for each method as it is by default."""
    clip, opened = load_clip("mini-robust"), open_training(pictures, None)
    digests: dict[str, str] = {}
    for kind in sorted(OBJECTIVES):
        settings = TrainSettings.model_validate(
            {"objective": {"kind": kind}, "data": pictures, "name": "golden"}
        )
        digests[kind] = open_run(settings, clip, opened).digest
    return digests


def _attacks() -> dict[str, str]:
    kinds = ("pgd", "fgsm", "apgd", "square", "fmn", "noise", "ensemble")
    return {
        kind: parse_attack({"kind": kind, "ball": {"kind": "linf", "radius": "4/255"}}).model_dump_json()
        for kind in kinds
    }


def _parameters(model: Any) -> dict[str, str]:
    return {
        name: repr(field.get_default(call_default_factory=True, validated_data={}))
        for name, field in model.model_fields.items()
    }


def _options(entry: EntryPoint) -> dict[str, dict[str, Any]]:
    """Every option of a command and of its subcommands: what may be written, and what it is when it is left
    out.
    """
    seen: list[argparse.ArgumentParser] = []

    def remember(parser: argparse.ArgumentParser, file: object = None) -> None:
        seen.append(parser)

    with (
        patch.object(argparse.ArgumentParser, "print_help", remember),
        redirect_stdout(StringIO()),
        suppress(SystemExit),
    ):
        entry.load()(["--help"])
    return {parser.prog: _actions(parser) for parser in _with_subparsers(seen[0])} if seen else {}


def _with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _with_subparsers(each)


def _actions(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    return {
        " ".join(action.option_strings) or action.dest: {
            "default": str(action.default).replace(str(ROOT), ""),
            "nargs": action.nargs,
            "required": action.required,
            "choices": sorted(action.choices or ()),
        }
        for action in parser._actions
    }


def _without_prose(part: Any) -> Any:
    """A JSON document without the sentences in it: wording may change. A property that is called
    `description` stays.
    """
    if isinstance(part, list):
        return [_without_prose(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        name: _without_prose(value)
        for name, value in sorted(part.items())
        if not (name in _PROSE and isinstance(value, str))
    }


if __name__ == "__main__":
    print(json.dumps(snapshot(), indent=1, ensure_ascii=False))
