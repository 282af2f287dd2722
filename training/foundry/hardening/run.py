"""A hardening run: attack the pictures of a step, learn from them, and watch for catastrophic overfitting."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from robustclip.errors import InvalidInput
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Pixels, Progress
from training.foundry.augmentation import augment
from training.foundry.blocks import BlockRun
from training.foundry.corpus import Corpus
from training.foundry.hardening.attack import Strength
from training.foundry.hardening.check import Checker, targets_of
from training.foundry.hardening.losses import Embeddings, Targets, TextHead, label_loss, losses, squared_shift
from training.foundry.hardening.recipe import HardeningRecipe
from training.foundry.hardening.tower import ImageTower
from training.foundry.recipe import BLOCK
from training.foundry.run import Phase, Reached, Terms, parameter_groups
from training.processes import Processes

STRONG_STEPS = 20
OVERFITTING_PICTURES = 64


class Draw(NamedTuple):
    """Pictures of a step: rows [B], pixels [B, 3, S, S], and noise in [-1, 1] where the attack starts."""

    rows: Tensor
    pixels: Pixels
    noise: Tensor


def draw(corpus: Corpus, rows: Tensor, generator: torch.Generator, *, augmented: bool) -> Draw:
    pixels = corpus.pixels(rows)
    pixels = augment(pixels, generator) if augmented else pixels
    return Draw(rows, pixels, 2 * torch.rand(pixels.shape, generator=generator) - 1)


class HardeningRun(BlockRun[HardeningRecipe, nn.Module, Draw]):
    """Learns the image tower of `clip`; best.pt in the folder holds the best averaged tower.

    gap: by how many points PGD-20 may find less accuracy than the training attack; two checks in a row beyond
    it end the run.

    A picture without a label has the name that the original tower gives it. Raises as BlockRun does.
    """

    checkpoint_steps = 50
    stream = "step"

    def __init__(
        self,
        clip: Clip,
        corpus: Corpus,
        recipe: HardeningRecipe,
        *,
        folder: Path,
        processes: Processes,
        gap: float = 10.0,
        workers: int = 0,
        progress: Progress,
    ) -> None:
        self.preset = recipe.preset
        super().__init__(
            corpus, recipe, folder, processes, progress, batch=recipe.batch, seed=recipe.seed, workers=workers
        )
        self.gap, self.parent, self.clip = gap, clip.fingerprint, clip.to(processes.device)
        self.original = ImageTower(self.clip, bf16=recipe.bf16)
        self.average_tower, self.tower = self.original.frozen_copy(), self.original.frozen_copy()
        self.average, self.network = self.average_tower.visual, self.tower.visual
        self.target = self.tower.frozen_view()
        self.modules = {"visual": self.network, "average": self.average}
        self.network.requires_grad_(True)
        settings = parameter_groups(
            self.network.named_parameters(),
            rate=recipe.rate,
            stem_rate=recipe.stem_rate,
            weight_decay=recipe.weight_decay,
        )
        self.optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.98))
        with torch.no_grad():
            self.head = TextHead(
                text_weights(self.clip, Prompts(), corpus.names.texts), self.clip.logit_scale.detach()
            )
        self.checker = Checker(corpus, self.head, self.original, recipe.check_pictures, recipe.seed)
        self.best_score, self.suspect = -1.0, False

    def finish(self) -> Clip:
        """All steps that are left, then the CLIP with the best averaged tower."""
        recipe, steps = self.recipe, math.ceil(self.recipe.samples / self.recipe.batch)
        phase = Phase(
            "harden",
            steps=steps,
            batch=recipe.batch,
            warm_up=min(recipe.warm_up, max(1, steps // 6)),
            check_samples=recipe.check_samples,
            average=recipe.average,
            clip=recipe.clip,
        )
        self.train(phase)
        path = self.folder / "best.pt"
        self.processes.wait()
        if not path.exists():
            raise InvalidInput(
                f"{path} is gone, and with it the best weights.", field="--run", help="Use another --run."
            )
        state = cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True))
        self.average.load_state_dict(state["visual"])
        return self.clip.with_model(self.average_tower.clip.model, "hardened")

    def facts(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "suspect": self.suspect, "parent": self.parent}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best_score, self.suspect = float(state["best_score"]), bool(state["suspect"])

    def changed(self, phase: Phase, state: Mapping[str, Any]) -> list[str]:
        return super().changed(phase, state) + (["backbone"] if state["parent"] != self.parent else [])

    def draw(self, rows: Tensor, generator: torch.Generator) -> Draw:
        return draw(self.corpus, rows, generator, augmented=self.recipe.augment)

    def terms(self, draw: Draw) -> Terms:
        preset, device = self.preset, self.processes.device
        pixels, noise = draw.pixels.to(device), draw.noise.to(device)
        compared = preset.needs_original or bool((self.corpus.name < 0).any())
        natural = self._original(pixels) if compared else None
        targets = targets_of(self.corpus, self.head, draw.rows, natural)
        moving = plain = torch.arange(len(pixels))
        # `to_clean` compares two forms of a picture; a clean loss alone takes other pictures, to save attacks
        if not preset.to_clean:
            moving, plain = (
                moving[moving % BLOCK >= self.recipe.untouched_a_block],
                plain[plain % BLOCK < self.recipe.untouched_a_block],
            )
        about = targets.select(moving)
        fixed = None if natural is None else natural[moving]
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
            preset, seen, self.head, about, clean_targets=targets.select(plain), batch=self.recipe.batch
        )

    def check(self, phase: Phase, reached: Reached) -> bool:
        strong = Strength.of(self.recipe.eps, STRONG_STEPS)
        clean = self.checker.clean(self.average_tower)
        (robust,) = self.checker.robust(self.average_tower, strong)
        weak, deep = self.checker.robust(
            self.target, self.recipe.strength, strong, pictures=OVERFITTING_PICTURES
        )
        suspect = weak - deep > self.gap
        terms = {name: round(value, 4) for name, value in reached.terms.items()}
        self.log(
            reached.line()
            | {
                "loss": terms,
                "clean": clean,
                "robust": robust,
                "current": {"training_attack": weak, "pgd20": deep},
                "overfitting": suspect,
            }
        )
        if robust >= self.best_score:
            self.best_score = robust
            best = {"visual": self.average.state_dict(), "score": robust, "step": reached.step}
            self.write("best.pt", best)
        stop, self.suspect = suspect and self.suspect, suspect
        if suspect:
            print(
                f"CATASTROPHIC OVERFITTING at step {reached.step}? {weak} % under the training attack, "
                f"{deep} % under PGD-20. "
                + (
                    "Stopped; the best weights are kept. More --steps or a lower --rate cures it."
                    if stop
                    else "The next check decides."
                ),
                file=sys.stderr,
                flush=True,
            )
        return stop

    def _attack(self, pixels: Pixels, noise: Tensor, targets: Targets, fixed: Tensor | None) -> Pixels:
        def value(inputs: Pixels) -> Tensor:
            embeddings = self.target(inputs)
            if self.preset.inner == "shift" and fixed is not None:
                return squared_shift(embeddings, fixed)
            return label_loss(self.head(embeddings), targets)

        return self.recipe.strength.attack(value, pixels, noise)

    @torch.no_grad()
    def _original(self, pixels: Pixels) -> Tensor:
        return self.original(pixels)
