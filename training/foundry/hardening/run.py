"""A hardening run: attack, learn, average, check, and go on after a kill as if nothing had happened."""

import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustclip.errors import InvalidInput, RobustClipError
from robustclip.files import replacing
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip, describe
from robustclip.models.prompts import Prompts
from robustclip.types import Pixels, Progress
from training.foundry.hardening.attack import Strength
from training.foundry.hardening.check import Checker
from training.foundry.hardening.losses import Embeddings, Targets, TextHead, label_loss, losses, squared_shift
from training.foundry.hardening.recipe import Recipe
from training.foundry.hardening.supply import BLOCK, Draw, Supply, ahead, draw_blocks, refuse_unshareable
from training.foundry.hardening.tower import ImageTower
from training.foundry.weights import (
    average_into,
    changed_options,
    load_checkpoint,
    parameter_groups,
    share_of_rate,
)
from training.processes import Processes

CHECKPOINT_STEPS = 50
STRONG_STEPS = 20
OVERFITTING_PICTURES = 64


class HardeningDiverged(RobustClipError):
    """A loss that is no number any more."""

    code = "training-diverged"


class HardeningRun:
    """The state of a run: the tower that learns, its average, the original, optimizer, what the checks found.

    gap: by how many points PGD-20 may find less accuracy than the training attack; two checks in a row beyond
    it end the run.

    Raises InvalidInput for an objective that needs a teacher and pictures that have none, for a batch that
    processes and parts don't share evenly, and for a folder whose checkpoint was made with other options.
    """

    def __init__(
        self,
        clip: Clip,
        supply: Supply,
        recipe: Recipe,
        *,
        folder: Path,
        processes: Processes,
        gap: float = 10.0,
        workers: int = 0,
        progress: Progress,
    ) -> None:
        refuse_impossible(supply, recipe, parts=processes.count * processes.parts)
        self.supply, self.recipe, self.folder, self.processes, self.gap, self.workers = (
            supply,
            recipe,
            folder,
            processes,
            gap,
            workers,
        )
        self.progress = progress
        self.preset = recipe.preset
        self.parent = clip.fingerprint
        self.clip = clip.to(processes.device)
        self.original = ImageTower(self.clip, bf16=recipe.bf16)
        self.average = self.original.frozen_copy()
        self.tower = self.original.frozen_copy()
        self.target = self.tower.frozen_view()
        self.tower.visual.requires_grad_(True)
        settings = parameter_groups(
            self.tower.visual.named_parameters(),
            rate=recipe.rate,
            stem_rate=recipe.stem_rate,
            weight_decay=recipe.weight_decay,
        )
        self.optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.98))
        self.base_rates = [cast(float, group["lr"]) for group in self.optimizer.param_groups]
        with torch.no_grad():
            self.judge = TextHead(
                text_weights(self.clip, Prompts(), supply.names.texts), self.clip.logit_scale.detach()
            )
        self.checker = Checker(supply, self.judge, recipe.check_pictures, recipe.seed)
        self.trained = torch.nonzero(~supply.validation).squeeze(1)
        self.best_score, self.suspect = -1.0, False

    def finish(self) -> Clip:
        """All steps that are left, then the CLIP with the best averaged tower."""
        recipe, steps = self.recipe, math.ceil(self.recipe.samples / self.recipe.batch)
        self.folder.mkdir(parents=True, exist_ok=True)
        start = self._resume()
        draws = self._draws(start, steps)
        began, counted = time.monotonic(), start
        for step in range(start, steps):
            self._set_rates(step, steps)
            terms = self._step(step, draws)
            average_into(self.average, self.tower, decay=recipe.average, step=step)
            speed = (step + 1 - counted) * recipe.batch / (time.monotonic() - began)
            self.progress(
                step + 1,
                steps,
                "harden: "
                + ", ".join(f"{name} {value:.3f}" for name, value in terms.items())
                + f", {speed:.0f} samples/s",
            )
            samples, last = (step + 1) * recipe.batch, step + 1 == steps
            stop = False
            if last or samples // recipe.check_samples > step * recipe.batch // recipe.check_samples:
                stop = self._check(
                    {
                        "step": step + 1,
                        "samples": samples,
                        "samples_per_second": round(speed, 1),
                        "loss": terms,
                    }
                )
                began, counted = time.monotonic(), step + 1
                self._save(step + 1)
            elif (step + 1) % CHECKPOINT_STEPS == 0:
                self._save(step + 1)
            if stop:
                break
        return self._best()

    def _draws(self, start: int, steps: int) -> Iterator[Draw]:
        """This process's parts of all steps in their order; with workers, a part is read while the one before
        is learned from.
        """
        processes = self.processes
        blocks = torch.arange(self.recipe.batch // BLOCK).chunk(processes.count * processes.parts)[
            processes.index :: processes.count
        ]

        def draw(step: int, part: Tensor) -> Draw:
            return draw_blocks(
                self.supply,
                self.trained,
                part.tolist(),
                seed=self.recipe.seed,
                step=step,
                augmented=self.recipe.augment,
            )

        order = itertools.product(range(start, steps), blocks)
        return ahead(draw, order) if self.workers else itertools.starmap(draw, order)

    def _step(self, step: int, draws: Iterator[Draw]) -> dict[str, float]:
        """One update from the whole batch, cut into parts among processes and, within one, in time; the mean
        terms.
        """
        parts = self.processes.parts
        means: dict[str, float] = {}
        for draw in itertools.islice(draws, parts):
            terms = self._losses(draw)
            (torch.stack(list(terms.values())).sum() / parts).backward()
            for name, term in terms.items():
                means[name] = means.get(name, 0.0) + self.processes.mean(term.detach()).item() / parts
        self.processes.average_gradients(self.tower.parameters())
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.tower.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not all(math.isfinite(value) for value in means.values()):
            raise HardeningDiverged(
                f"the loss of step {step + 1} is not finite: {means}.", help="Lower --rate."
            )
        return {name: round(value, 4) for name, value in means.items()}

    def _losses(self, draw: Draw) -> dict[str, Tensor]:
        preset, device = self.preset, self.processes.device
        pixels, noise, targets = draw.pixels.to(device), draw.noise.to(device), self._targets(draw.rows)
        moving = plain = torch.arange(len(pixels))
        # that term takes both forms of a picture; a mere clean loss takes pictures of its own, so that no
        # attack is wasted
        if not preset.to_clean:
            moving, plain = (
                moving[moving % BLOCK >= self.recipe.untouched_a_block],
                plain[plain % BLOCK < self.recipe.untouched_a_block],
            )
        about = targets.select(moving)
        fixed = self._original(pixels[moving]) if preset.shift else None
        attacked = self._attack(pixels[moving], noise[moving], about, fixed)
        moved, clean = cast(Tensor, self.tower(torch.cat([attacked, pixels[plain]]))).split(
            [len(moving), len(plain)]
        )
        seen = Embeddings(
            moved,
            clean if len(plain) else None,
            self._original(attacked) if preset.to_original else None,
            fixed,
        )
        return losses(
            preset, seen, self.judge, about, clean_targets=targets.select(plain), batch=self.recipe.batch
        )

    def _attack(self, pixels: Pixels, noise: Tensor, targets: Targets, fixed: Tensor | None) -> Pixels:
        def value(inputs: Pixels) -> Tensor:
            embeddings = self.target(inputs)
            if self.preset.inner == "shift" and fixed is not None:
                return squared_shift(embeddings, fixed)
            return label_loss(self.judge(embeddings), targets)

        return self.recipe.strength.attack(value, pixels, noise)

    def _targets(self, rows: Tensor) -> Targets:
        targets = self.checker.targets(rows)
        if not self.preset.needs_teacher:
            return targets
        return Targets(
            targets.name,
            targets.own,
            torch.from_numpy(self.supply.teacher[rows.numpy()]).to(self.processes.device),
        )

    @torch.no_grad()
    def _original(self, pixels: Pixels) -> Tensor:
        return self.original(pixels)

    def _set_rates(self, step: int, steps: int) -> None:
        warm_up = min(self.recipe.warm_up, max(1, steps // 6))
        factor = share_of_rate(step, steps, warm_up=warm_up)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def _check(self, line: dict[str, Any]) -> bool:
        """Measure, log, keep the best; whether to stop. One process works, all agree."""
        stop = False
        if self.processes.main:
            strong = Strength.of(self.recipe.eps, STRONG_STEPS)
            clean = self.checker.clean(self.average)
            (robust,) = self.checker.robust(self.average, strong)
            weak, deep = self.checker.robust(
                self.target, self.recipe.strength, strong, pictures=OVERFITTING_PICTURES
            )
            suspect = weak - deep > self.gap
            found = {"clean": clean, "robust": robust, "current": {"training_attack": weak, "pgd20": deep}}
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line | found | {"overfitting": suspect}) + "\n")
            if robust >= self.best_score:
                self.best_score = robust
                self._write(
                    "best.pt",
                    {"visual": self.average.visual.state_dict(), "score": robust, "step": line["step"]},
                )
            stop = suspect and self.suspect
            self.suspect = suspect
            if suspect:
                print(
                    f"CATASTROPHIC OVERFITTING at step {line['step']}? {weak} % under the training attack, "
                    f"{deep} % under PGD-20. "
                    + (
                        "Stopped; the best weights are kept. More --steps or a lower --rate cures it."
                        if stop
                        else "The next check decides."
                    ),
                    file=sys.stderr,
                    flush=True,
                )
        return self.processes.agree(stop)

    def _best(self) -> Clip:
        path = self.folder / "best.pt"
        self.processes.wait()
        if not path.exists():
            raise InvalidInput(
                f"{path} is gone, and with it the best weights.", field="--run", help="Use another --run."
            )
        state = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
        best = self.average
        best.visual.load_state_dict(state["visual"])
        return describe(best.clip.model, self.clip.arch, "hardened", mean=self.clip.mean, std=self.clip.std)

    def _save(self, step: int) -> None:
        if self.processes.main:
            state = {
                "visual": self.tower.visual.state_dict(),
                "average": self.average.visual.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            facts = {
                "step": step,
                "best_score": self.best_score,
                "suspect": self.suspect,
                "recipe": self.recipe.model_dump(),
                "parent": self.parent,
            }
            self._write("checkpoint.pt", state | facts)

    def _write(self, name: str, state: dict[str, Any]) -> None:
        with replacing(self.folder / name) as partial:
            torch.save(state, partial)

    def _resume(self) -> int:
        def changed(state: dict[str, Any]) -> list[str]:
            return [
                *changed_options(self.recipe, state["recipe"]),
                *(["backbone"] if state["parent"] != self.parent else []),
            ]

        state = load_checkpoint(self.folder / "checkpoint.pt", changed)
        if state is None:
            return 0
        self.tower.visual.load_state_dict(state["visual"])
        self.average.visual.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_score, self.suspect = float(state["best_score"]), bool(state["suspect"])
        return int(state["step"])


def refuse_impossible(supply: Supply, recipe: Recipe, *, parts: int) -> None:
    """InvalidInput for what the pictures or the processes can't give."""
    if recipe.preset.needs_teacher and supply.teacher is None:
        raise InvalidInput(
            f"{recipe.objective} needs a picture teacher's opinion, and only pretraining's data sets have "
            f"one.",
            field="--objective",
            help="Use tecoa, fare or pmg-aft, or give the folder that `robustclip pretrain` reads.",
        )
    refuse_unshareable(supply, batch=recipe.batch, parts=parts)
