"""One training run, from a folder of pictures to a published set. `command.py` reads options and prints;
`campaigns` make many of these.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from prompts_store.manifest import Ref, Result
from prompts_store.shelf import Shelf, place_of
from prompts_store.store import PromptStore
from robustclip.digests import json_digest
from robustclip.files import write_atomically
from robustclip.models import Clip, Prompts, zero_shot
from robustclip.types import Cost, Progress
from training.data.classes import choose_classes
from training.data.labelled import LabelledImages
from training.data.sampling import HELD_OUT, TRAIN, balanced_subset, carve_validation, few_shot
from training.data.sources import Source
from training.learning.losses import TowerPrecision
from training.learning.objectives import AnyMethod
from training.learning.tuning.config import TrainSettings, within
from training.learning.tuning.loop import Fitted, fit
from training.learning.tuning.publish import Account, as_result, publish, training_page
from training.processes import Processes
from training.threats.base import Effort, measure_at, threat_level
from training.threats.judging import Pictures, victim_of

VALIDATION_SEED = 0
FEWEST_FOR_A_WARNING = 64  # held-out pictures


class TrainingPictures(NamedTuple):
    """The training pictures under their labels; which of them may be trained on, and which no run trains on,
    sorted indices each.
    """

    data: LabelledImages
    candidates: Tensor
    held_out: Tensor

    @property
    def validation(self) -> LabelledImages:
        """What `evaluate --split train:validation` opens."""
        return self.data.subset(self.held_out, HELD_OUT)


@dataclass(frozen=True, eq=False)
class Run:
    """A run before anything is computed. `objective` is what the settings ask, with as many epochs as the cap
    on passes allows.
    """

    settings: TrainSettings
    clip: Clip
    pictures: TrainingPictures
    indices: Tensor
    objective: AnyMethod

    @cached_property
    def digest(self) -> str:
        """What decides the learned prompts: runs that share it share a checkpoint. How many processes share
        the work decides nothing.
        """
        data = self.pictures.data
        facts: dict[str, object] = {
            "objective": self.objective.model_dump(mode="json"),
            "clip": self.clip.fingerprint,
            "data": data.digest,
        }
        facts |= {"indices": self.indices.tolist(), "seed": self.settings.seed}
        bf16 = self.settings.precision == "bf16"
        return json_digest(
            facts | ({"precision": "bf16"} if bf16 else {})
        )  # float32 goes without saying: older checkpoints

    def starting_prompts(self) -> Prompts:
        """What learning begins with: of the shape of what is learned."""
        return self.objective.fold(
            self.clip, self.objective.new_parameters(self.clip, self.pictures.data.labels, self.settings.seed)
        ).detached()

    def bill(self) -> int:
        """Charged image passes (forward + 2 backward), preparing included."""
        return self.objective.bill(len(self.indices)).charged


class Trained(NamedTuple):
    """What a run leaves behind: the published version and its report, how it did (`guesses`: no better than
    that), what it took: in preparing, and in `account` as a whole, whenever its passes were made.
    """

    ref: Ref
    page: Path
    fitted: Fitted
    averaged: bool
    results: list[Result]
    guesses: bool
    preparing: Cost
    account: Account


def open_training(folder: Path, classes: Path | None = None) -> TrainingPictures:
    """The training pictures of a folder, or those of some classes alone under their names alone.

    Held out is what `evaluate --split train:validation` measures on, and what a run on all classes holds out
    of these.
    """
    whole = Source(folder=folder, split=TRAIN).open()
    if classes is None:
        return TrainingPictures(whole, *carve_validation(whole))
    return TrainingPictures(
        choose_classes(whole, classes, "these"), *carve_validation(choose_classes(whole, classes, "all"))
    )


def open_run(settings: TrainSettings, clip: Clip, pictures: TrainingPictures) -> Run:
    """Refuses, with InvalidInput or DataRefused, what can't be trained: too few shots, too small a cap,
    prompts that leave no room for a label.
    """
    data, indices = pictures.data, pictures.candidates
    if settings.shots:
        indices = few_shot(
            data, indices, settings.shots, settings.seed, allow_fewer=settings.allow_fewer_shots
        )
    run = Run(
        settings,
        clip,
        pictures,
        indices,
        within(settings.objective, pictures=len(indices), max_passes=settings.max_passes),
    )
    zero_shot(clip, run.starting_prompts(), data.labels, scoring="softmax")
    return run


def train(run: Run, processes: Processes, *, progress: Progress) -> Trained | None:
    """Learn, validate, publish. None but in the main process, which publishes."""
    settings, clip, objective, data = run.settings, run.clip, run.objective, run.pictures.data
    store = PromptStore(settings.store)
    cache = settings.runs / "cache"
    examples = objective.prepare(
        clip, data, run.indices, seed=settings.seed, folder=cache, progress=progress, processes=processes
    )
    checkpoint = settings.runs / "train" / f"{settings.name}-{run.digest[:12]}.safetensors"
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
    held_out = run.pictures.validation
    results = _validate(settings, clip, fitted.prompts, held_out, progress)
    prompts, averaged = fitted.prompts, False
    if fitted.averaged is not None:
        of_average = _validate(settings, clip, fitted.averaged, held_out, progress)
        averaged = sum(found.accuracy for found in of_average) > sum(found.accuracy for found in results)
        prompts, results = (fitted.averaged, of_average) if averaged else (prompts, results)
    guesses = no_better_than_a_guess(results, held_out.targets[_validated(settings, held_out)])
    companions = {
        name: _validate(settings, clip, other, held_out, progress)
        for name, other in fitted.companions.items()
    }
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
        selection=settings.selection,
        note=" ".join(
            filter(
                None,
                [
                    settings.note,
                    *_remarks(averaged, fitted.restarts, settings.precision, settings.classes, guesses),
                ],
            )
        ),
        activate=settings.activate,
    )
    manifest = store.load(ref, clip).manifest
    page = Shelf(settings.store / place_of(manifest) / ref.name).report(ref.version)
    cost, epochs = examples.cost, fitted.history
    for epoch in epochs:
        cost = cost.plus(epoch.cost)
    text_passes = sum(epoch.text_passes for epoch in epochs)
    times = (examples.seconds, tuning_seconds)
    account = Account(len(run.indices), cost, text_passes, *times, fitted.restarts, companions)
    write_atomically(page, training_page(ref, manifest, epochs, account).encode())
    return Trained(ref, page, fitted, averaged, results, guesses, examples.cost, account)


def no_better_than_a_guess(results: Sequence[Result], targets: Tensor) -> bool:
    """Whether as few of the held-out pictures, whose `targets` these are, are right as one answer for all of
    them; never said of fewer than 64.
    """
    clean = [found for found in results if found.threat == "clean" and found.n >= FEWEST_FOR_A_WARNING]
    return any(found.accuracy <= int(targets.bincount().max()) / len(targets) for found in clean)


def _remarks(
    averaged: bool, restarts: int, precision: TowerPrecision, classes: Path | None, guesses: bool
) -> list[str]:
    """What the manifest must say about a run beyond its parameters."""
    return [
        *([f"Learned on some classes alone: {classes.name}."] if classes else []),
        *(["The average of the prompts over the steps."] if averaged else []),
        *(
            [f"Began again {restarts} time(s) after a collapse, with half the consistency term each."]
            if restarts
            else []
        ),
        *(["Learned through towers in bfloat16."] if precision == "bf16" else []),
        *(["No better than a guess on held-out pictures."] if guesses else []),
    ]


def _validate(
    settings: TrainSettings, clip: Clip, prompts: Prompts, held_out: LabelledImages, progress: Progress
) -> list[Result]:
    """Accuracy on what no run trains on, as `robustclip evaluate --split train:validation` with seed 0
    measures it.
    """
    if not len(held_out):
        return []
    indices = _validated(settings, held_out)
    pictures = Pictures(held_out, indices, VALIDATION_SEED, settings.runs / "cache")
    victim, effort = victim_of(clip, prompts, pictures), Effort(eps=(settings.validate_eps,))
    return [
        as_result(
            measure_at(threat, victim, within, effort, progress),
            threat,
            within,
            data=held_out,
            seed=VALIDATION_SEED,
        )
        for threat in settings.validate_at
        for within in threat_level(threat).threat_sets(effort)
    ]


def _validated(settings: TrainSettings, held_out: LabelledImages) -> Tensor:
    """[n] the held-out pictures that are measured on."""
    return balanced_subset(held_out, settings.validate_limit, VALIDATION_SEED)
