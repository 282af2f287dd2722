"""A run that trains one purifying network: draw, learn, average, check, and go on after a kill as if nothing
had happened.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.errors import RobustClipError
from robustclip.files import replacing
from robustclip.purifiers import build_network
from robustclip.purifiers.denoiser import Denoiser
from robustclip.purifiers.diffusion import diffused, log_ratio
from robustclip.purifiers.super_resolver import SuperResolver
from robustclip.types import Progress
from training.foundry.hardening.supply import BLOCK, Supply, refuse_unshareable
from training.foundry.purifying.exam import Exam, Reading, examine
from training.foundry.purifying.pictures import Draw, draw_blocks, halved
from training.foundry.purifying.recipe import Recipe
from training.foundry.weights import (
    average_into,
    changed_options,
    load_checkpoint,
    parameter_groups,
    share_of_rate,
)
from training.processes import ALONE, Processes

CHECKPOINT_STEPS = 100


class PurifyingDiverged(RobustClipError):
    """A loss that is no number any more."""

    code = "training-diverged"


class PurifyingRun:
    """The state of a run: the network, its average, optimizer, step. `folder` holds a checkpoint and
    log.jsonl.

    Raises InvalidInput for a batch that processes and parts don't share evenly, for pictures of which none is
    kept back or none is left, and for a folder whose checkpoint was made with other options.
    """

    def __init__(
        self,
        supply: Supply,
        exam: Exam,
        recipe: Recipe,
        *,
        folder: Path,
        processes: Processes = ALONE,
        progress: Progress,
    ) -> None:
        refuse_unshareable(supply, batch=recipe.batch, parts=processes.count * processes.parts)
        self.supply, self.exam, self.recipe, self.folder, self.processes, self.progress = (
            supply,
            exam,
            recipe,
            folder,
            processes,
            progress,
        )
        self.trained = torch.nonzero(~supply.validation).squeeze(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network, self.average = (
                build_network(recipe.network).to(processes.device) for _ in range(2)
            )
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False)
        settings = parameter_groups(
            self.network.named_parameters(),
            rate=recipe.rate,
            stem_rate=recipe.rate,
            weight_decay=recipe.weight_decay,
        )
        self.optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.99))
        self.readings: dict[str, Reading] = {}

    def finish(self) -> SuperResolver | Denoiser:
        """All steps that are left, then the averaged network; `readings` are those of the last check."""
        recipe, steps = self.recipe, math.ceil(self.recipe.samples / self.recipe.batch)
        start = self._resume()
        began, counted = time.monotonic(), start
        for step in range(start, steps):
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.rate * share_of_rate(step, steps, warm_up=recipe.warm_up)
            loss = self._step(step)
            average_into(self.average, self.network, decay=recipe.average, step=step)
            speed = (step + 1 - counted) * recipe.batch / (time.monotonic() - began)
            self.progress(step + 1, steps, f"{recipe.kind}: loss {loss:.4f}, {speed:.0f} samples/s")
            samples = (step + 1) * recipe.batch
            if (
                step + 1 == steps
                or samples // recipe.check_samples > step * recipe.batch // recipe.check_samples
            ):
                self._check(
                    {
                        "step": step + 1,
                        "samples": samples,
                        "samples_per_second": round(speed, 1),
                        "loss": round(loss, 5),
                    }
                )
                began, counted = time.monotonic(), step + 1
                self._save(step + 1)
            elif (step + 1) % CHECKPOINT_STEPS == 0:
                self._save(step + 1)
        return self.average

    def _step(self, step: int) -> float:
        """One update from the whole batch, cut into parts among processes and, within one, in time; the mean
        loss.
        """
        processes = self.processes
        blocks = torch.arange(self.recipe.batch // BLOCK).chunk(processes.count * processes.parts)[
            processes.index :: processes.count
        ]
        mean = 0.0
        for part in blocks:
            draw = draw_blocks(
                self.supply,
                self.trained,
                part.tolist(),
                size=self.recipe.size,
                seed=self.recipe.seed,
                step=step,
            )
            loss = self.loss(draw)
            (loss / processes.parts).backward()
            mean += processes.mean(loss.detach()).item() / processes.parts
        processes.average_gradients(self.network.parameters())
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not math.isfinite(mean):
            raise PurifyingDiverged(f"the loss of step {step + 1} is not finite.", help="Lower --rate.")
        return mean

    def loss(self, draw: Draw) -> Tensor:
        """Mean absolute error of enlarged pictures, or mean squared error of predicted noise at times up to
        the network's last.
        """
        device = self.processes.device
        pixels = draw.pixels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16):
            if isinstance(self.network, SuperResolver):
                return F.l1_loss(self.network(halved(pixels)).float(), pixels)
            time, noise = (
                self.network.shape.max_time * draw.time.clamp_min(1e-3).to(device),
                draw.noise.to(device),
            )
            return F.mse_loss(self.network(diffused(pixels, noise, time), log_ratio(time)).float(), noise)

    def _check(self, line: dict[str, Any]) -> None:
        """Look at the averaged weights. One process works, all agree."""
        if self.processes.main:
            self.readings = examine(self.average, self.exam, seed=self.recipe.seed)
            found = {name: reading._asdict() for name, reading in self.readings.items()}
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line | found) + "\n")
        self.readings = self.processes.agree(self.readings)

    def _save(self, step: int) -> None:
        if self.processes.main:
            state = {
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            readings = {name: list(reading) for name, reading in self.readings.items()}
            with replacing(self.folder / "checkpoint.pt") as partial:
                torch.save(
                    state | {"step": step, "readings": readings, "recipe": self.recipe.model_dump()}, partial
                )

    def _resume(self) -> int:
        self.processes.wait()
        state = load_checkpoint(
            self.folder / "checkpoint.pt", lambda state: changed_options(self.recipe, state["recipe"])
        )
        if state is None:
            return 0
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.readings = {name: Reading(*reading) for name, reading in state["readings"].items()}
        return int(state["step"])
