"""A run that trains one purifying network: to double pictures in size, or to predict their noise."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.purifiers import build_network
from robustclip.purifiers.networks import Denoiser, SuperResolver, diffused, log_ratio
from robustclip.types import Progress
from training.foundry.blocks import BlockRun
from training.foundry.corpus import Corpus
from training.foundry.purifying.exam import Draw, Exam, Reading, draw, examine, halved
from training.foundry.purifying.recipe import PurifyingRecipe
from training.foundry.run import Phase, Reached, Terms, parameter_groups
from training.processes import ALONE, Processes


class PurifyingRun(BlockRun[PurifyingRecipe, SuperResolver | Denoiser, Draw]):
    """Learns a network from the pictures of `corpus`; `readings` are those of the last check, on `exam`."""

    stream = "purify"

    def __init__(
        self,
        corpus: Corpus,
        exam: Exam,
        recipe: PurifyingRecipe,
        *,
        folder: Path,
        processes: Processes = ALONE,
        progress: Progress,
    ) -> None:
        super().__init__(corpus, recipe, folder, processes, progress, batch=recipe.batch, seed=recipe.seed)
        self.exam = exam
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network, self.average = (
                build_network(recipe.network).to(processes.device) for _ in range(2)
            )
        self.average.load_state_dict(self.network.state_dict())
        self.average.requires_grad_(False)
        self.modules = {"network": self.network, "average": self.average}
        settings = parameter_groups(
            self.network.named_parameters(),
            rate=recipe.rate,
            stem_rate=recipe.rate,
            weight_decay=recipe.weight_decay,
        )
        self.optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.99))
        self.readings: dict[str, Reading] = {}

    def finish(self) -> SuperResolver | Denoiser:
        """All steps that are left, then the averaged network."""
        recipe = self.recipe
        phase = Phase(
            recipe.kind,
            steps=math.ceil(recipe.samples / recipe.batch),
            batch=recipe.batch,
            warm_up=recipe.warm_up,
            check_samples=recipe.check_samples,
            average=recipe.average,
            clip=recipe.clip,
        )
        self.train(phase)
        return self.average

    def facts(self) -> dict[str, Any]:
        return {"readings": {name: list(reading) for name, reading in self.readings.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.readings = {name: Reading(*reading) for name, reading in state["readings"].items()}

    def draw(self, rows: Tensor, generator: torch.Generator) -> Draw:
        return draw(self.corpus, rows, generator, size=self.recipe.size)

    def terms(self, draw: Draw) -> Terms:
        """Mean absolute error of doubled pictures, or mean squared error of the noise at random times."""
        device = self.processes.device
        pixels = draw.pixels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16):
            if isinstance(self.network, SuperResolver):
                return {"loss": F.l1_loss(self.network(halved(pixels)).float(), pixels)}
            noise = draw.noise.to(device)
            time = self.network.shape.max_time * draw.time.clamp_min(1e-3).to(device)
            predicted = self.network(diffused(pixels, noise, time), log_ratio(time))
            return {"loss": F.mse_loss(predicted.float(), noise)}

    def check(self, phase: Phase, reached: Reached) -> bool:
        self.readings = examine(self.average, self.exam, seed=self.recipe.seed)
        readings = {name: reading._asdict() for name, reading in self.readings.items()}
        self.log(reached.line() | {"loss": round(reached.terms["loss"], 5)} | readings)
        return False
