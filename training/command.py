"""`robustclip train`: learn a prompt set on labelled pictures and publish it."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from prompts_store.manifest import Ref, Result
from prompts_store.store import PromptStore
from robustclip.classifier import zero_shot
from robustclip.clip import Clip, load_clip
from robustclip.prompts import Prompts
from robustclip.types import Cost, Progress
from training.cache import digest_of
from training.checkpoint import Epoch
from training.config import TrainSettings, add_options, check_device, read_settings
from training.data import LabelledImages
from training.levels import Pictures, measure_level
from training.loop import fit
from training.progress import bar
from training.publish import as_result, publish
from training.sampling import HELD_OUT, TRAIN, balanced_subset, carve_validation, few_shot, open_split

VALIDATION_SEED = 0
EXAMPLES = """examples:
  robustclip train --objective.kind advpt --data pictures/caltech-101 --shots 16 --name caltech-advpt --objective.eps 1/255
  robustclip train --objective.kind coop --data pictures/caltech-101 --name caltech-coop --activate
"""


class Trained(NamedTuple):
    """What a run leaves behind: the published version, how it did, what it took."""

    ref: Ref
    pictures: int
    history: list[Epoch]
    results: list[Result]
    preparing: Cost
    preparing_seconds: float
    tuning_seconds: float
    text_passes: int


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
    with bar(quiet=as_json and not sys.stderr.isatty()) as progress:
        trained = train(settings, progress=progress)
    report = _report(trained, settings)
    print(json.dumps(report, indent=2) if as_json else _text(report))
    return 0


def train(settings: TrainSettings, *, progress: Progress) -> Trained:
    """One run from folder to store. What must be refused is refused before anything is computed."""
    store = PromptStore(settings.store)
    data = open_split(settings.data, TRAIN)
    clip = load_clip(settings.backbone, settings.pretrained, device=check_device(settings.device))
    candidates, validation = carve_validation(data)
    indices = candidates
    if settings.shots:
        indices = few_shot(data, candidates, settings.shots, settings.seed, allow_fewer=settings.allow_fewer_shots)
    objective = settings.objective
    examples = objective.prepare(clip, data, indices, seed=settings.seed, folder=settings.runs / "cache", progress=progress)
    checkpoint = settings.runs / "train" / f"{settings.name}-{_digest(settings, clip, data, indices)[:12]}.safetensors"
    if settings.fresh:
        checkpoint.unlink(missing_ok=True)
    began = time.monotonic()
    fitted = fit(clip, objective, examples, data.labels, seed=settings.seed, checkpoint=checkpoint, progress=progress)
    tuning_seconds = time.monotonic() - began
    results = _validate(settings, clip, fitted.prompts, data.subset(validation, HELD_OUT), progress)
    ref = publish(
        store,
        clip,
        objective,
        fitted.prompts,
        name=settings.name,
        data=data,
        shots=settings.shots,
        seed=settings.seed,
        results=results,
        note=settings.note,
        activate=settings.activate,
    )
    return Trained(ref, len(indices), fitted.history, results, examples.cost, examples.seconds, tuning_seconds, fitted.text_passes)


def _digest(settings: TrainSettings, clip: Clip, data: LabelledImages, indices: Tensor) -> str:
    """What decides the learned prompts: runs that share it share a checkpoint."""
    objective = settings.objective.model_dump(mode="json")
    return digest_of({"objective": objective, "clip": clip.fingerprint, "data": data.digest, "indices": indices.tolist(), "seed": settings.seed})


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
    last = trained.history[-1]
    return {
        "ref": str(trained.ref),
        "active": settings.activate,
        "store": str(settings.store),
        "pictures": trained.pictures,
        "epochs": len(trained.history),
        "loss": last.loss,
        "training_accuracy": last.accuracy,
        "results": [result.model_dump(mode="json") for result in trained.results],
        "preparing": {**trained.preparing._asdict(), "seconds": trained.preparing_seconds},
        "tuning": {"text_passes": trained.text_passes, "seconds": trained.tuning_seconds},
    }


def _text(report: dict[str, Any]) -> str:
    validated = [
        f"  {found['threat']:<5} {'' if found['threat'] == 'clean' else 'at ' + found['eps'] + ' '}{found['accuracy']:.1%} "
        f"[{found['low']:.1%}, {found['high']:.1%}] of {found['n']} held-out pictures"
        for found in report["results"]
    ]
    preparing, tuning = report["preparing"], report["tuning"]
    return "\n".join(
        [
            f"published {report['ref']} in {report['store']}{', active' if report['active'] else ''}",
            f"  {report['epochs']} epochs on {report['pictures']} pictures: "
            f"loss {report['loss']:.3f}, training accuracy {report['training_accuracy']:.1%}",
            *validated,
            f"  took {preparing['forward']} forward and {preparing['backward']} backward image passes ({preparing['seconds']:.0f} s), "
            f"{tuning['text_passes']} text passes ({tuning['seconds']:.0f} s)",
            *([] if report["active"] else [f"  serve it: robustclip prompts activate {report['ref']} --store {shlex.quote(report['store'])}"]),
        ]
    )
