"""A pretraining run: its phases, what a step learns from, and going on after a kill as if nothing had
happened.

Every process draws the whole step. It shows its share of the pictures and of the texts to the towers and
computes the loss from everyone's.
"""

import copy
import json
import math
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.files import replacing
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip, describe
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image, encode_patches, encode_text
from robustclip.seeds import derive
from robustclip.types import Progress
from training.foundry.pretraining.captions import MAX_FILLER, filler, worded
from training.foundry.pretraining.corpus import Corpus, augment, cached_array
from training.foundry.pretraining.recipe import MINI, Phase, Recipe
from training.foundry.weights import (
    average_into,
    inside_stem,
    load_checkpoint,
    parameter_groups,
    share_of_rate,
)
from training.processes import ALONE, Processes

CHECKPOINT_STEPS = 100  # also how often validation is measured


class Trainer:
    """The state of a run: model, its average, a linear reading of the sentence encoder's space, optimiser,
    step.
    """

    def __init__(
        self,
        clip: Clip,
        corpus: Corpus,
        words: tuple[str, ...],
        geometry: Tensor,
        recipe: Recipe,
        run: Path,
        progress: Progress,
        *,
        processes: Processes = ALONE,
    ) -> None:
        self.corpus, self.recipe, self.run, self.progress, self.processes = (
            corpus,
            recipe,
            run,
            progress,
            processes,
        )
        self.device = processes.device
        self.clip = clip.to(self.device)
        self.texts = [*corpus.names.texts, *words]
        self.geometry = geometry.to(self.device)
        self.model = cast(nn.Module, clip.model)
        self.reading = nn.Linear(clip.embed_dim, geometry.shape[1]).to(self.device)
        self.average = copy.deepcopy(self.model)
        self.trained = torch.nonzero(~corpus.validation).squeeze(1)
        self.views: list[Any] = []

    def run_phases(self) -> Clip:
        with self.processes.main_first():  # the others find its cache
            self.views = [self._view(index) for index in range(self.recipe.views)]
        self._phase("frozen", self.recipe.frozen_samples // self.recipe.batch, self.recipe.batch)
        self._phase("joint", self.recipe.joint_samples // self.recipe.joint_batch, self.recipe.joint_batch)
        self._phase("broad", self.recipe.broad_samples // self.recipe.joint_batch, self.recipe.joint_batch)
        return describe(self.average, "mini", "embedded", mean=self.clip.mean, std=self.clip.std)

    def _phase(self, phase: Phase, steps: int, batch: int) -> None:
        checkpoint = self.run / f"{phase}.pt"
        optimizer = self._optimizer(phase)
        base = [group["lr"] for group in optimizer.param_groups]
        start = self._resume(phase, checkpoint, optimizer)
        began, warm_up = time.monotonic(), max(1, min(100, steps // 6))
        for step in range(start, steps):
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * share_of_rate(step, steps, warm_up=warm_up)
            losses = self._losses(phase, step, batch)
            optimizer.zero_grad(set_to_none=True)
            cast(Tensor, sum(losses.values())).backward()
            self.processes.average_gradients([*self.model.parameters(), *self.reading.parameters()])
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            self._settle(step)
            self.progress(
                step + 1,
                steps,
                f"{phase}: " + ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()),
            )
            if self.processes.main and ((step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps):
                accuracy = self._validate()
                line = {
                    "phase": phase,
                    "step": step + 1,
                    "samples": (step + 1) * batch,
                    "seconds": round(time.monotonic() - began),
                    **accuracy,
                }
                with (self.run / "log.jsonl").open("a") as log:
                    log.write(
                        json.dumps(line | {name: round(loss.item(), 4) for name, loss in losses.items()})
                        + "\n"
                    )
                self._save(checkpoint, optimizer, step + 1)

    def _losses(self, phase: Phase, step: int, batch: int) -> dict[str, Tensor]:
        recipe, corpus = self.recipe, self.corpus
        generator = torch.Generator().manual_seed(int(derive(torch.tensor([recipe.seed]), f"{phase}-{step}")))
        rows = self.trained[torch.randint(len(self.trained), (batch,), generator=generator)]
        opinion = torch.from_numpy(corpus.teacher[rows.numpy()]).float()
        chosen = (
            self._choose_names(corpus.name[rows], opinion, generator)
            if phase != "broad"
            else torch.arange(len(corpus.names.texts))
        )
        words = (
            len(corpus.names.texts)
            + torch.randperm(len(self.texts) - len(corpus.names.texts), generator=generator)[
                : recipe.words_a_step
            ]
        )
        length = (
            int(torch.randint(1, MAX_FILLER + 1, (), generator=generator))
            if torch.rand((), generator=generator) < recipe.filler_share
            else 0
        )
        with self._precise():
            texts = self._texts(torch.cat([chosen, words]), length, generator)
            features = self._images(phase, rows, generator)
        logits = self.clip.logit_scale.clamp(max=100) * features @ texts[: len(chosen)].T  # [B, names]
        own, imagenet = self._members(chosen, corpus.source[rows])
        labels = (chosen[None] == corpus.name[rows][:, None]).float()
        labels = 0.95 * labels + 0.05 * own / own.sum(dim=1, keepdim=True)
        soft = torch.where(imagenet, opinion[:, chosen.clamp(max=999)], 0.0)
        labels, soft, own, imagenet = (targets.to(self.device) for targets in (labels, soft, own, imagenet))
        kept = soft.sum(dim=1, keepdim=True)
        loss_label = (
            -(labels * logits.masked_fill(~own, -torch.inf).log_softmax(dim=1).masked_fill(~own, 0))
            .sum(dim=1)
            .mean()
        )
        teaching = logits.masked_fill(~imagenet, -torch.inf).log_softmax(dim=1).masked_fill(~imagenet, 0)
        loss_teacher = -(soft / kept.clamp_min(1e-4) * teaching).sum(dim=1).mul(kept.squeeze(1)).mean()
        aligned = F.cosine_similarity(self.reading(texts), self.geometry[torch.cat([chosen, words])], dim=1)
        return {
            "label": 0.5 * loss_label,
            "teacher": 0.5 * loss_teacher,
            "geometry": recipe.geometry * (1 - aligned).mean(),
        }

    def _choose_names(self, true: Tensor, opinion: Tensor, generator: torch.Generator) -> Tensor:
        """The names of a step: all true ones, every picture's likeliest in the teacher's eyes, and random
        ones; sorted, distinct.

        Texts are what a step pays for while the stem is frozen: 600 names took four times as long as 512
        pictures.
        """
        wanted = torch.cat([true, opinion.argmax(dim=1)]).unique()
        filling = torch.randperm(len(self.corpus.names.texts), generator=generator)[
            : max(self.recipe.names_a_step - len(wanted), 0)
        ]
        return torch.cat([wanted, filling]).unique()

    def _members(self, chosen: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """[B, names] bool: is a chosen name one of the picture's own data set; is it ImageNet's."""
        members = self.corpus.names.members
        own = torch.stack([torch.isin(chosen, members[name]) for name in self.corpus.sets])
        return own[source], torch.isin(chosen, members["imagenet"]).expand(len(source), -1)

    def _texts(self, indices: Tensor, length: int, generator: torch.Generator) -> Tensor:
        tokens = self.clip.tokenize(
            worded(
                [self.texts[index] for index in indices.tolist()],
                generator,
                synonym_share=self.recipe.synonym_share,
            )
        )
        longest = int(tokens.argmax(dim=1).max()) + 1
        context = filler(self.clip, min(length, self.clip.context_length - longest), generator)

        def encode(part: Tensor) -> Tensor:
            return encode_text(self.clip, part, context).float()

        return F.normalize(
            self.processes.encode(encode, self.processes.own(tokens).to(self.device), len(tokens)), dim=-1
        )

    def _images(self, phase: Phase, rows: Tensor, generator: torch.Generator) -> Tensor:
        own = self.processes.own
        if phase == "frozen":
            view = self.views[int(torch.randint(len(self.views), (), generator=generator))]
            inputs = torch.from_numpy(view[own(rows).numpy()]).float()
        else:
            inputs = own(
                augment(self.corpus.pixels(rows), generator)
            )  # one generator for all rows: each process changes them all

        def encode(part: Tensor) -> Tensor:
            if phase != "frozen":
                return encode_image(self.clip, part).float()
            patches = cast(Any, self.model).visual.conv1.project(part).flatten(2).transpose(1, 2)
            return encode_patches(self.clip, patches).float()

        return F.normalize(self.processes.encode(encode, inputs.to(self.device), len(rows)), dim=-1)

    def _view(self, index: int) -> Any:
        """Stem features of all pictures: view 0 as they are, the others augmented."""
        stem, count, size = cast(Any, self.model).visual.conv1, len(self.corpus.name), self.clip.image_size

        def convolve() -> Any:
            for start in range(0, count, 256):
                pixels = self.corpus.pixels(torch.arange(start, min(start + 256, count)))
                if index:
                    pixels = augment(pixels, torch.Generator().manual_seed(index * 1_000_003 + start))
                with (
                    torch.inference_mode(),
                    torch.autocast(self.device.type, torch.bfloat16),
                ):  # kept in 16 bits, whatever the recipe's precision
                    images = (pixels.to(self.device) - self.clip.mean[:, None, None]) / self.clip.std[
                        :, None, None
                    ]
                    yield stem.convolve(images).half().contiguous().cpu().numpy()

        path = self.run / "cache" / f"stem-{self.recipe.limit}-{index}.npy"
        side = size // MINI["vision_cfg"]["patch_size"]
        return cached_array(
            path,
            (count, stem.channels, side, side),
            np.float16,
            convolve,
            self.progress,
            f"stem features, view {index}",
        )

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """AdamW; the convolutions of the stem do not learn in phase `frozen`; tables, norms and biases don't
        decay.
        """
        rate = self.recipe.rate if phase == "frozen" else self.recipe.joint_rate
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(phase != "frozen" or not inside_stem(name))
        rates = {"rate": rate, "stem_rate": self.recipe.stem_rate, "weight_decay": self.recipe.weight_decay}
        settings = parameter_groups(self.model.named_parameters(), **rates)
        undecayed = next(group for group in settings if (group["lr"], group["weight_decay"]) == (rate, 0.0))
        undecayed["params"].extend(self.reading.parameters())
        return torch.optim.AdamW(settings, betas=(0.9, 0.98))

    @torch.no_grad()
    def _settle(self, step: int) -> None:
        cast(Any, self.model).logit_scale.clamp_(0, math.log(100))
        average_into(self.average, self.model, decay=self.recipe.average, step=step)

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Accuracy of the averaged weights on pictures kept back from the training files, among the trained
        names of each set, per cent.
        """
        clip = describe(
            copy.deepcopy(self.average),
            "mini",
            "validation",
            mean=self.clip.mean,
            std=self.clip.std,
            fingerprint="validation",
        )
        result: dict[str, float] = {}
        for index, name in enumerate(self.corpus.sets):
            members = self.corpus.names.members[name]
            weights = text_weights(
                clip, Prompts(), tuple(self.corpus.names.texts[member] for member in members.tolist())
            )
            rows = torch.nonzero(self.corpus.validation & (self.corpus.source == index)).squeeze(1)
            hits = [self._hits(clip, chunk, members, weights) for chunk in rows.split(256)]
            result[name] = round(100 * torch.cat(hits).float().mean().item(), 1) if hits else 0.0
        return result

    def _hits(self, clip: Clip, rows: Tensor, members: Tensor, weights: Tensor) -> Tensor:
        with self._precise():
            features = encode_image(clip, self.corpus.pixels(rows).to(self.device))
        return members[(features.float() @ weights.T).argmax(dim=1).cpu()] == self.corpus.name[rows]

    def _precise(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _save(self, path: Path, optimizer: torch.optim.Optimizer, step: int) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "reading": self.reading.state_dict(),
        }
        with replacing(path) as partial:
            torch.save(
                state
                | {"optimizer": optimizer.state_dict(), "step": step, "recipe": self.recipe.model_dump()},
                partial,
            )

    def _resume(self, phase: Phase, path: Path, optimizer: torch.optim.Optimizer) -> int:
        state = load_checkpoint(path, lambda state: self.recipe.changed(state["recipe"], phase))
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.reading.load_state_dict(state["reading"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
