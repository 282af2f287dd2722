"""A pretraining run: its phases, and what a step learns from.

Every process draws the whole step. It shows its share of the pictures and of the texts to the towers, and
computes the loss from everyone's features.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.models.clip import Clip
from robustclip.models.towers import encode_image, encode_patches, encode_text
from robustclip.types import Progress
from training.data.sampling import seeded
from training.foundry.augmentation import augment
from training.foundry.corpus import Corpus, cached_array
from training.foundry.pretraining.captions import MAX_FILLER, filler, worded
from training.foundry.pretraining.check import accuracies, autocast
from training.foundry.pretraining.recipe import MINI, PhaseName, PretrainingRecipe
from training.foundry.run import Phase, Reached, Run, Terms, inside_stem, parameter_groups
from training.processes import ALONE, Processes


class PretrainingRun(Run[PretrainingRecipe, nn.Module]):
    """Learns `clip`, and a linear map from its text features to the sentence encoder's.

    `geometry` [texts, G] holds the sentence encoder's features of the corpus's names and then of `words`.
    """

    def __init__(
        self,
        clip: Clip,
        corpus: Corpus,
        words: tuple[str, ...],
        geometry: Tensor,
        recipe: PretrainingRecipe,
        run: Path,
        progress: Progress,
        *,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(recipe, run, processes, progress)
        self.corpus, self.device = corpus, processes.device
        self.clip = clip.to(self.device)
        self.texts = [*corpus.names.texts, *words]
        self.geometry = geometry.to(self.device)
        self.network = cast(nn.Module, clip.model)
        self.average = copy.deepcopy(self.network)
        self.reading = nn.Linear(clip.embed_dim, geometry.shape[1]).to(self.device)
        self.modules = {"model": self.network, "average": self.average, "reading": self.reading}
        self.trained = torch.nonzero(~corpus.validation).squeeze(1)
        self.views: list[Any] = []

    def finish(self) -> Clip:
        """All phases, then the averaged weights."""
        recipe = self.recipe
        with self.processes.main_first():  # the others find its cache
            self.views = [self.view(index) for index in range(recipe.views)]
        self._train("frozen", recipe.frozen_samples, recipe.batch)
        self._train("joint", recipe.joint_samples, recipe.joint_batch)
        self._train("broad", recipe.broad_samples, recipe.joint_batch)
        return self.clip.with_model(self.average, "embedded")

    def changed(self, phase: Phase, state: Mapping[str, Any]) -> list[str]:
        return self.recipe.changed(state["recipe"], cast(PhaseName, phase.name))

    def losses(self, phase: Phase, start: int) -> Iterator[Iterable[Terms]]:
        for step in range(start, phase.steps):
            yield [self.terms(phase.name, step, phase.batch)]

    @torch.no_grad()
    def constrain(self) -> None:
        cast(Any, self.network).logit_scale.clamp_(0, math.log(100))

    def check(self, phase: Phase, reached: Reached) -> bool:
        line = {"phase": phase.name, "step": reached.step, "samples": reached.samples}
        line["seconds"] = round(reached.seconds)
        terms = {name: round(value, 4) for name, value in reached.terms.items()}
        measured = accuracies(self.average, self.clip, self.corpus, precision=self.recipe.precision)
        self.log(line | measured | terms)
        return False

    def _train(self, name: PhaseName, samples: int, batch: int) -> None:
        steps = samples // batch
        self.begin(name)
        phase = Phase(
            name,
            steps=steps,
            batch=batch,
            warm_up=max(1, min(100, steps // 6)),
            check_samples=self.checkpoint_steps * batch,
            average=self.recipe.average,
            clip=1.0,
            checkpoint=f"{name}.pt",
        )
        self.train(phase)

    def begin(self, phase: PhaseName) -> None:
        """Make the optimizer of a phase. In phase `frozen` the convolutions of the stem do not learn."""
        rate = self.recipe.rate if phase == "frozen" else self.recipe.joint_rate
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(phase != "frozen" or not inside_stem(name))
        settings = parameter_groups(
            self.network.named_parameters(),
            rate=rate,
            stem_rate=self.recipe.stem_rate,
            weight_decay=self.recipe.weight_decay,
        )
        undecayed = next(group for group in settings if (group["lr"], group["weight_decay"]) == (rate, 0.0))
        undecayed["params"].extend(self.reading.parameters())
        self.optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.98))

    def terms(self, phase: str, step: int, batch: int) -> Terms:
        """The terms of the loss of one step, on `batch` pictures."""
        recipe, corpus = self.recipe, self.corpus
        generator = seeded(recipe.seed, f"{phase}-{step}")
        rows = self.trained[torch.randint(len(self.trained), (batch,), generator=generator)]
        opinion = torch.from_numpy(corpus.teacher[rows.numpy()]).float()
        every = len(corpus.names.texts)
        broad = phase == "broad"
        chosen = torch.arange(every) if broad else self._choose_names(corpus.name[rows], opinion, generator)
        order = torch.randperm(len(self.texts) - every, generator=generator)
        shown = torch.cat([chosen, every + order[: recipe.words_a_step]])
        length = (
            int(torch.randint(1, MAX_FILLER + 1, (), generator=generator))
            if torch.rand((), generator=generator) < recipe.filler_share
            else 0
        )
        with autocast(self.device, recipe.precision):
            texts = self._texts(shown, length, generator)
            features = self._images(phase, rows, generator)
        logits = self.clip.logit_scale.clamp(max=100) * features @ texts[: len(chosen)].T  # [B, names]
        members, imagenet = self._members(chosen, corpus.source[rows])
        labels = (chosen[None] == corpus.name[rows][:, None]).float()
        labels = 0.95 * labels + 0.05 * members / members.sum(dim=1, keepdim=True)
        soft = torch.where(imagenet, opinion[:, chosen.clamp(max=999)], 0.0)
        labels, soft, members, imagenet = (
            targets.to(self.device) for targets in (labels, soft, members, imagenet)
        )
        mass = soft.sum(dim=1, keepdim=True)  # of the teacher's opinion, on the chosen names
        label = -(labels * _log_shares(logits, members)).sum(dim=1).mean()
        taught = soft / mass.clamp_min(1e-4) * _log_shares(logits, imagenet)
        aligned = F.cosine_similarity(self.reading(texts), self.geometry[shown], dim=1)
        return {
            "label": 0.5 * label,
            "teacher": 0.5 * -taught.sum(dim=1).mul(mass.squeeze(1)).mean(),
            "geometry": recipe.geometry * (1 - aligned).mean(),
        }

    def _choose_names(self, true: Tensor, opinion: Tensor, generator: torch.Generator) -> Tensor:
        """A step's names, sorted and distinct: true ones, the teacher's first choices, random ones.

        All names take too long while the stem is frozen: 600 took four times as long as 512 pictures.
        """
        wanted = torch.cat([true, opinion.argmax(dim=1)]).unique()
        filling = torch.randperm(len(self.corpus.names.texts), generator=generator)[
            : max(self.recipe.names_a_step - len(wanted), 0)
        ]
        return torch.cat([wanted, filling]).unique()

    def _members(self, chosen: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """[B, names] bool each: is a chosen name one of the picture's data set; is it one of ImageNet's."""
        members = self.corpus.names.members
        of_sets = torch.stack([torch.isin(chosen, members[name]) for name in self.corpus.sets])
        return of_sets[source], torch.isin(chosen, members["imagenet"]).expand(len(source), -1)

    def _texts(self, indices: Tensor, length: int, generator: torch.Generator) -> Tensor:
        names = [self.texts[index] for index in indices.tolist()]
        tokens = self.clip.tokenize(worded(names, generator, synonym_share=self.recipe.synonym_share))
        longest = int(tokens.argmax(dim=1).max()) + 1
        context = filler(self.clip, min(length, self.clip.context_length - longest), generator)

        def encode(part: Tensor) -> Tensor:
            return encode_text(self.clip, part, context).float()

        share = self.processes.own(tokens).to(self.device)
        return F.normalize(self.processes.encode(encode, share, len(tokens)), dim=-1)

    def _images(self, phase: str, rows: Tensor, generator: torch.Generator) -> Tensor:
        if phase == "frozen":
            view = self.views[int(torch.randint(len(self.views), (), generator=generator))]
            inputs = torch.from_numpy(view[self.processes.own(rows).numpy()]).float()
        else:  # all rows share one generator, so that each process has to augment them all
            inputs = self.processes.own(augment(self.corpus.pixels(rows), generator))

        def encode(part: Tensor) -> Tensor:
            if phase != "frozen":
                return encode_image(self.clip, part).float()
            patches = cast(Any, self.network).visual.conv1.project(part).flatten(2).transpose(1, 2)
            return encode_patches(self.clip, patches).float()

        return F.normalize(self.processes.encode(encode, inputs.to(self.device), len(rows)), dim=-1)

    def view(self, index: int) -> Any:
        """Stem features of all pictures: view 0 as they are, the others augmented."""
        stem, count, size = cast(Any, self.network).visual.conv1, len(self.corpus.name), self.clip.image_size

        def convolve() -> Iterator[Any]:
            for start in range(0, count, 256):
                pixels = self.corpus.pixels(torch.arange(start, min(start + 256, count)))
                if index:
                    pixels = augment(pixels, torch.Generator().manual_seed(index * 1_000_003 + start))
                # in 16 bits, whatever the recipe's precision is
                with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
                    centered = pixels.to(self.device) - self.clip.mean[:, None, None]
                    features = stem.convolve(centered / self.clip.std[:, None, None])
                    yield features.half().contiguous().cpu().numpy()

        path = self.folder / "cache" / f"stem-{self.recipe.limit}-{index}.npy"
        side = size // MINI["vision_cfg"]["patch_size"]
        shape, words = (count, stem.channels, side, side), f"stem features, view {index}"
        return cached_array(path, shape, np.float16, convolve, self.progress, words)


def _log_shares(logits: Tensor, members: Tensor) -> Tensor:
    """[B, names] log-probabilities among the `members` of each row, 0 elsewhere."""
    return logits.masked_fill(~members, -torch.inf).log_softmax(dim=1).masked_fill(~members, 0)
