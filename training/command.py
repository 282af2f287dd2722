"""`robustclip train`: learn a prompt set on labelled pictures and publish it."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from prompts_store.manifest import Ref, Result
from prompts_store.shelf import REPORT_SUFFIX, place_of
from prompts_store.store import PromptStore
from robustclip.classifier import zero_shot
from robustclip.clip import Clip, load_clip
from robustclip.digests import json_digest
from robustclip.files import write_atomically
from robustclip.prompts import Prompts
from robustclip.types import Progress
from training.budget import within
from training.classes import choose_classes
from training.config import TrainSettings, add_options, check_device, read_settings
from training.data import LabelledImages
from training.inner import Precision
from training.levels import Pictures, measure_level
from training.loop import Fitted, fit
from training.memory import keep_freed_memory
from training.objectives import AnyMethod
from training.objectives.base import Examples
from training.processes import Processes, joined
from training.progress import bar
from training.publish import as_result, publish
from training.question import Source
from training.report import Account, training_page
from training.sampling import HELD_OUT, TRAIN, balanced_subset, carve_validation, few_shot

VALIDATION_SEED = 0
EXAMPLES = """examples:
  robustclip train --objective.kind advpt --data pictures/caltech-101 --shots 16 --name caltech-advpt --objective.eps 1/255
  robustclip train --objective.kind coop --data pictures/caltech-101 --name caltech-coop --activate
  robustclip train --objective.kind capt --data pictures/caltech-101 --shots 16 --name caltech-capt --objective.eps 2/255 --validate-at clean,T2
  robustclip train --objective.kind fap --data pictures/caltech-101 --shots 16 --name caltech-fap-base --classes base
"""


class Trained(NamedTuple):
    """What a run leaves behind: the published version and its report, how it did, what it took."""

    ref: Ref
    page: Path
    pictures: int
    fitted: Fitted
    averaged: bool
    results: list[Result]
    companions: dict[str, list[Result]]
    examples: Examples
    tuning_seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Learn a prompt set on labelled pictures and publish it."""
    parser = argparse.ArgumentParser(
        prog="robustclip train", description=main.__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    arguments = vars(parser.parse_args(argv))
    as_json: bool = arguments.pop("as_json")
    settings = read_settings(arguments)
    keep_freed_memory()
    if settings.device is not None:
        check_device(settings.device)
    hidden = as_json and not sys.stderr.isatty()
    with joined(settings.device, parts=settings.accumulate) as processes, bar(quiet=hidden or not processes.main) as progress:
        trained = train(settings, processes, progress=progress)
    if trained is None:
        return 0
    report = _report(trained, settings)
    print(json.dumps(report, indent=2) if as_json else _text(report))
    return 0


def train(settings: TrainSettings, processes: Processes, *, progress: Progress) -> Trained | None:
    """One run from folder to store. What must be refused is refused before anything is computed. None but in the main process, which publishes."""
    store = PromptStore(settings.store)
    data, candidates, validation = open_training(settings.data, settings.classes)
    clip = load_clip(settings.backbone, settings.pretrained, device=processes.device)
    indices = candidates
    if settings.shots:
        indices = few_shot(data, candidates, settings.shots, settings.seed, allow_fewer=settings.allow_fewer_shots)
    objective = within(settings.objective, pictures=len(indices), max_passes=settings.max_passes)
    zero_shot(clip, objective.fold(clip, objective.new_parameters(clip, data.labels, settings.seed)), data.labels)  # refuses what does not fit
    cache = settings.runs / "cache"
    examples = objective.prepare(clip, data, indices, seed=settings.seed, folder=cache, progress=progress, processes=processes)
    digest = _digest(objective, clip, data, indices, settings)
    checkpoint = settings.runs / "train" / f"{settings.name}-{digest[:12]}.safetensors"
    if settings.fresh and processes.main:
        checkpoint.unlink(missing_ok=True)
    began = time.monotonic()
    fitted = fit(
        clip,
        objective,
        examples,
        data.labels,
        seed=settings.seed,
        checkpoint=checkpoint,
        progress=progress,
        processes=processes,
        precision=settings.precision,
    )
    if not processes.main:
        return None
    tuning_seconds = time.monotonic() - began
    held_out = data.subset(validation, HELD_OUT)
    results = _validate(settings, clip, fitted.prompts, held_out, progress)
    prompts, averaged = fitted.prompts, False
    if fitted.averaged is not None:
        of_average = _validate(settings, clip, fitted.averaged, held_out, progress)
        averaged = sum(found.accuracy for found in of_average) > sum(found.accuracy for found in results)
        prompts, results = (fitted.averaged, of_average) if averaged else (prompts, results)
    companions = {name: _validate(settings, clip, other, held_out, progress) for name, other in fitted.companions.items()}
    ref = publish(
        store,
        clip,
        objective,
        prompts,
        name=settings.name,
        data=data,
        shots=settings.shots,
        seed=settings.seed,
        results=results,
        note=" ".join(filter(None, [settings.note, *_remarks(averaged, fitted.restarts, settings.precision, settings.classes)])),
        activate=settings.activate,
    )
    manifest = store.load(ref, clip).manifest
    page = settings.store / place_of(manifest) / ref.name / f"{ref.version}{REPORT_SUFFIX}"
    trained = Trained(ref, page, len(indices), fitted, averaged, results, companions, examples, tuning_seconds)
    write_atomically(page, training_page(ref, manifest, fitted.history, _account(trained)).encode())
    return trained


def open_training(folder: Path, classes: Path | None = None) -> tuple[LabelledImages, Tensor, Tensor]:
    """The training pictures, of some classes alone under their names alone; which of them may be trained on, and which are held out, [n] sorted each.

    Held out is what `evaluate --split train:validation` measures on, and what a run on all classes holds out of these.
    """
    whole = Source(folder=folder, split=TRAIN).open()
    if classes is None:
        return whole, *carve_validation(whole)
    return choose_classes(whole, classes, "these"), *carve_validation(choose_classes(whole, classes, "all"))


def _remarks(averaged: bool, restarts: int, precision: Precision, classes: Path | None) -> list[str]:
    """What the manifest must say about a run beyond its parameters."""
    return [
        *([f"Learned on some classes alone: {classes.name}."] if classes else []),
        *(["The average of the prompts over the steps."] if averaged else []),
        *([f"Began again {restarts} time(s) after a collapse, with half the consistency term each."] if restarts else []),
        *(["Learned through towers in bfloat16."] if precision == "bf16" else []),
    ]


def _account(trained: Trained) -> Account:
    """The whole run's passes, whenever they were made."""
    cost = trained.examples.cost
    for epoch in trained.fitted.history:
        cost = cost.plus(epoch.cost)
    return Account(
        trained.pictures,
        cost.forward,
        cost.backward,
        sum(epoch.text_passes for epoch in trained.fitted.history),
        trained.examples.seconds,
        trained.tuning_seconds,
        trained.fitted.restarts,
        trained.companions,
    )


def _digest(objective: AnyMethod, clip: Clip, data: LabelledImages, indices: Tensor, settings: TrainSettings) -> str:
    """What decides the learned prompts: runs that share it share a checkpoint. How many processes share the work decides nothing."""
    facts: dict[str, object] = {"objective": objective.model_dump(mode="json"), "clip": clip.fingerprint, "data": data.digest}
    facts |= {"indices": indices.tolist(), "seed": settings.seed}
    return json_digest(facts | ({"precision": "bf16"} if settings.precision == "bf16" else {}))  # float32 goes without saying: older checkpoints


def _validate(settings: TrainSettings, clip: Clip, prompts: Prompts, held_out: LabelledImages, progress: Progress) -> list[Result]:
    """Accuracy on what no run trains on, as `robustclip evaluate --split train:validation` with seed 0 measures it."""
    if not len(held_out):
        return []
    indices = balanced_subset(held_out, settings.validate_limit, VALIDATION_SEED)
    pictures = Pictures(held_out, indices, VALIDATION_SEED, settings.runs / "cache")
    classifier = zero_shot(clip, prompts, held_out.labels)
    results: list[Result] = []
    for level in settings.validate_at:
        found = measure_level(level, settings.validate_eps, clip, classifier, pictures, randomized=False, progress=progress)
        results.append(as_result(found, level, settings.validate_eps, data=held_out, seed=VALIDATION_SEED))
    return results


def _report(trained: Trained, settings: TrainSettings) -> dict[str, Any]:
    account, last = _account(trained), trained.fitted.history[-1]
    return {
        "ref": str(trained.ref),
        "active": settings.activate,
        "store": str(settings.store),
        "report": str(trained.page),
        "pictures": trained.pictures,
        "epochs": len(trained.fitted.history),
        "loss": last.loss,
        "training_accuracy": last.accuracy,
        "attacked_training_accuracy": last.robust,
        "averaged": trained.averaged,
        "restarts": trained.fitted.restarts,
        "results": [result.model_dump(mode="json") for result in trained.results],
        "companions": {name: [result.model_dump(mode="json") for result in found] for name, found in trained.companions.items()},
        "preparing": {**trained.examples.cost._asdict(), "seconds": trained.examples.seconds},
        "tuning": {"text_passes": trained.fitted.text_passes, "seconds": trained.tuning_seconds},
        "whole_run": {"forward": account.forward, "backward": account.backward, "text_passes": account.text_passes},
    }


def _text(report: dict[str, Any]) -> str:
    named = {"": report["results"], **{f"{name}: ": found for name, found in report["companions"].items()}}
    validated = [
        f"  {name}{found['threat']:<5} {'' if found['threat'] == 'clean' else 'at ' + found['eps'] + ' '}{found['accuracy']:.1%} "
        f"[{found['low']:.1%}, {found['high']:.1%}] of {found['n']} held-out pictures"
        for name, results in named.items()
        for found in results
    ]
    accuracies = {"training accuracy": report["training_accuracy"], "attacked": report["attacked_training_accuracy"]}
    learned = ", ".join([f"loss {report['loss']:.3f}", *(f"{what} {value:.1%}" for what, value in accuracies.items() if value is not None)])
    preparing, tuning, whole = report["preparing"], report["tuning"], report["whole_run"]
    return "\n".join(
        [
            f"published {report['ref']} in {report['store']}{', active' if report['active'] else ''}",
            f"  {report['epochs']} epochs on {report['pictures']} pictures: {learned}",
            *([f"  collapsed and began again {report['restarts']} time(s): see the report"] if report["restarts"] else []),
            *validated,
            f"  took {whole['forward']} forward and {whole['backward']} backward image passes, {whole['text_passes']} text passes; "
            f"{preparing['seconds']:.0f} s preparing, {tuning['seconds']:.0f} s tuning",
            f"  report: {report['report']}",
            *([] if report["active"] else [f"  serve it: robustclip prompts activate {report['ref']} --store {shlex.quote(report['store'])}"]),
        ]
    )
