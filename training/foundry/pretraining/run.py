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

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image, encode_text
from robustclip.types import Features, Logits, Progress
from training.data.sampling import seeded
from training.foundry.augmentation import augment, blend
from training.foundry.corpus import IMAGENET, Corpus, cached_array
from training.foundry.pretraining.captions import MAX_FILLER, filler, worded
from training.foundry.pretraining.check import agreement, autocast, decisions
from training.foundry.pretraining.classifier import Readout, Teacher, install
from training.foundry.pretraining.recipe import PhaseName, PretrainingRecipe
from training.foundry.run import Phase, Reached, Run, Terms, parameter_groups
from training.processes import ALONE, Processes

_CHUNK = 256
_STARTING_PICTURES = 2048  # whose mean token the class token starts at
_RIDGE = 1.0


class PretrainingRun(Run[PretrainingRecipe, nn.Module]):
    """Makes `clip` from an ImageNet classifier, in three phases, and a map to the sentence encoder's space.

    names  a `Readout` learns the teacher's answers and the labels, on pooled features of augmented views
    text   the text tower learns the readout's names, and where other words are by their sentence embeddings
    image  the image tower, which computes the readout at first, learns from fresh augmentations; the text
           tower stays as it is, so that the features of the names are computed once

    `geometry` [texts, G] holds the sentence encoder's features of the corpus's names and then of `words`.
    """

    def __init__(
        self,
        clip: Clip,
        teacher: Teacher,
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
        self.clip, self.teacher = clip.to(self.device), teacher.to(self.device)
        self.names = len(corpus.names.texts)
        self.texts = [*corpus.names.texts, *words]
        self.geometry = geometry.to(self.device)
        self.network = cast(nn.Module, clip.model)
        self.average = copy.deepcopy(self.network)
        self.readout = Readout(teacher, self.names, clip.embed_dim, recipe.logit_scale).to(self.device)
        self.reading = nn.Linear(clip.embed_dim, geometry.shape[1]).to(self.device)
        self.modules = {
            "model": self.network,
            "average": self.average,
            "readout": self.readout,
            "reading": self.reading,
        }
        self.views: list[Any] = []
        self.targets = self.weights = torch.empty(0)

    def finish(self) -> Clip:
        """All phases, then the averaged weights."""
        recipe = self.recipe
        with self.processes.main_first():  # the others find its cache
            self.views = [self.view(index) for index in range(recipe.views)]
        self._train("names", recipe.names_samples, recipe.names_batch)
        self._train("text", recipe.text_samples, recipe.text_batch)
        self._train("image", recipe.image_samples, recipe.image_batch)
        return self._averaged(fingerprint=None)

    def changed(self, phase: Phase, state: Mapping[str, Any]) -> list[str]:
        return self.recipe.changed(state["recipe"], cast(PhaseName, phase.name))

    def losses(self, phase: Phase, start: int) -> Iterator[Iterable[Terms]]:
        terms = {"names": self.names_terms, "text": self.text_terms, "image": self.image_terms}[phase.name]
        for step in range(start, phase.steps):
            yield [terms(phase.batch, seeded(self.recipe.seed, f"{phase.name}-{step}"))]

    @torch.no_grad()
    def constrain(self) -> None:
        cast(Any, self.network).logit_scale.clamp_(0, math.log(100))
        self.readout.log_scale.clamp_(0, math.log(100))

    def check(self, phase: Phase, reached: Reached) -> bool:
        line = {"phase": phase.name, "step": reached.step, "samples": reached.samples}
        line["seconds"] = round(reached.seconds)
        terms = {name: round(value, 4) for name, value in reached.terms.items()}
        self.log(line | self._measured(phase.name) | terms)
        return False

    def begin(self, phase: PhaseName) -> None:
        """What a phase starts from, and its optimizer. Makes no difference to a phase that resumes."""
        recipe, model = self.recipe, cast(Any, self.network)
        if phase == "names":
            rows = torch.cat(self.corpus.trained)
            pooled = torch.from_numpy(self.views[0][rows.numpy()]).float().to(self.device)
            self.readout.start(pooled, self.corpus.name[rows].to(self.device))
            learning, rate = dict(self.readout.named_parameters()), recipe.names_rate
        elif phase == "text":
            self._install()
            self.targets = self._targets()
            learning = {
                name: parameter
                for name, parameter in self.network.named_parameters()
                if not name.startswith(("visual.", "logit_scale"))
            } | {f"reading.{name}": parameter for name, parameter in self.reading.named_parameters()}
            rate = recipe.text_rate
        else:
            self.network.load_state_dict(self.average.state_dict())
            with torch.no_grad():
                self.weights = text_weights(self._averaged(), Prompts(), self.corpus.names.texts)
            learning = {
                name: parameter
                for name, parameter in self.network.named_parameters()
                if name.startswith(("visual.", "logit_scale"))
            }
            rate = recipe.image_rate
        for module in (model, self.readout, self.reading):
            module.requires_grad_(False)
        for parameter in learning.values():
            parameter.requires_grad_()
        settings = parameter_groups(
            learning.items(), rate=rate, stem_rate=recipe.stem_rate, weight_decay=recipe.weight_decay
        )
        self.optimizer = torch.optim.AdamW(settings, betas=(0.9, 0.98))

    def names_terms(self, batch: int, generator: torch.Generator) -> Terms:
        """The terms of a step of phase `names`, on the pooled features of `batch` pictures."""
        rows, pooled = self._pooled(batch, generator)
        logits = self.readout.log_scale.exp() * self.readout.pictures(pooled) @ self.readout.texts().T
        return {
            "teacher": (1 - self.recipe.label) * _cross_entropy(logits, self.teacher.logits(pooled)),
            "label": self.recipe.label * self._label_loss(logits, rows, torch.zeros(batch, dtype=torch.bool)),
        }

    def text_terms(self, batch: int, generator: torch.Generator) -> Terms:
        """The terms of a step of phase `text`, on `batch` names and some words.

        names      how far texts are from the readout's names, and words from where they should be
        decisions  KL between the readout's answers to pictures and those with the texts in place of names
        geometry   how far the texts' images are from the sentence encoder's features
        """
        recipe = self.recipe
        chosen = torch.randperm(self.names, generator=generator)[:batch]
        order = torch.randperm(len(self.texts) - self.names, generator=generator)
        shown = torch.cat([chosen, self.names + order[: recipe.words_a_step]])
        length = (
            int(torch.randint(1, MAX_FILLER + 1, (), generator=generator))
            if torch.rand((), generator=generator) < recipe.filler_share
            else 0
        )
        _, pooled = self._pooled(256, generator)
        with autocast(self.device, recipe.precision):
            texts = self._texts(shown, length, generator)
        pictures = self.readout.log_scale.exp() * self.readout.pictures(pooled)
        taught = (pictures @ self.targets[chosen].T).log_softmax(1)
        learned = (pictures @ texts[: len(chosen)].T).log_softmax(1)
        far = 1 - F.cosine_similarity(texts, self.targets[shown], dim=1)
        aligned = F.cosine_similarity(self.reading(texts), self.geometry[shown], dim=1)
        return {
            "names": far[: len(chosen)].mean() + recipe.word * far[len(chosen) :].mean(),
            "decisions": F.kl_div(learned, taught, reduction="batchmean", log_target=True),
            "geometry": recipe.geometry * (1 - aligned).mean(),
        }

    def image_terms(self, batch: int, generator: torch.Generator) -> Terms:
        """The terms of a step of phase `image`, on `batch` pictures.

        label    the label among the names of the picture's data set, unless pictures are blended
        teacher  the teacher's answer at the same pixels, among ImageNet's names
        anchor   the squared distance from the readout's feature
        """
        recipe = self.recipe
        rows = self.corpus.draw(batch, generator)
        # all rows share one generator, so that each process has to augment them all
        pixels, blended = blend(
            augment(self.corpus.pixels(rows), generator), generator, mixed=recipe.mixed, noisy=recipe.noisy
        )
        inputs = self.processes.own(pixels).to(self.device)

        def encode(part: Tensor) -> Tensor:
            return encode_image(self.clip, part).float()

        with autocast(self.device, recipe.precision):
            features = F.normalize(self.processes.encode(encode, inputs, batch), dim=-1)
            with torch.no_grad():
                pooled = self.processes.encode(self.teacher, inputs, batch).float()
        logits = self.clip.logit_scale * features @ self.weights.T
        return {
            "label": recipe.label * self._label_loss(logits, rows, blended),
            "teacher": (1 - recipe.label) * _cross_entropy(logits, self.teacher.logits(pooled)),
            "anchor": recipe.anchor * (features - self.readout.pictures(pooled)).square().sum(1).mean(),
        }

    def view(self, index: int) -> Any:
        """Pooled features [n, 1280] of all pictures: view 0 as they are, the others augmented."""
        count = len(self.corpus.name)

        def convolve() -> Iterator[Any]:
            for start in range(0, count, _CHUNK):
                pixels = self.corpus.pixels(torch.arange(start, min(start + _CHUNK, count)))
                if index:
                    pixels = augment(pixels, torch.Generator().manual_seed(index * 1_000_003 + start))
                # in 16 bits, whatever the recipe's precision is
                with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16):
                    yield self.teacher(pixels.to(self.device)).half().cpu().numpy()

        path = self.folder / "cache" / f"pooled-{self.recipe.limit}-{index}.npy"
        shape = (count, self.teacher.weight.shape[1])
        return cached_array(
            path, shape, np.float16, convolve, self.progress, f"pooled features, view {index}"
        )

    def _train(self, name: PhaseName, samples: int, batch: int) -> None:
        steps = samples // batch
        self.begin(name)
        phase = Phase(
            name,
            steps=steps,
            batch=batch,
            warm_up=max(1, min(100, steps // 6)),
            check_samples=max(samples // 6, batch),
            average=self.recipe.average,
            clip=1.0,
            checkpoint=f"{name}.pt",
        )
        self.train(phase)

    def _install(self) -> None:
        """Begin the image tower, and the averaged weights, as the readout."""
        rows = torch.cat(self.corpus.trained)
        rows = rows[
            torch.randperm(len(rows), generator=seeded(self.recipe.seed, "tokens"))[:_STARTING_PICTURES]
        ]
        parts: list[Tensor] = []
        for part in rows.split(_CHUNK):
            pixels = self.corpus.pixels(part).to(self.device)
            with torch.no_grad():
                images = (pixels - self.clip.mean[:, None, None]) / self.clip.std[:, None, None]
                parts.append(self.teacher.stem.convolve(images).flatten(2).transpose(1, 2))
        install(cast(Any, self.network).visual, self.readout, torch.cat(parts))
        with torch.no_grad():
            cast(Any, self.network).logit_scale.copy_(self.readout.log_scale)
        self.average.load_state_dict(self.network.state_dict())

    @torch.no_grad()
    def _targets(self) -> Features:
        """[texts, E]: the readout's names; for words a ridge regression from sentence embeddings."""
        names = self.readout.texts()
        known = names.norm(dim=1) > 0
        inputs = self.geometry[: self.names][known]
        gram = inputs.T @ inputs + _RIDGE * torch.eye(inputs.shape[1], device=self.device)
        guessed = F.normalize(self.geometry @ torch.linalg.solve(gram, inputs.T @ names[known]), dim=1)
        guessed[: self.names][known] = names[known]
        return guessed

    def _pooled(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows and their pooled features in a random view."""
        rows = self.corpus.draw(batch, generator)
        view = self.views[int(torch.randint(len(self.views), (), generator=generator))]
        return rows, torch.from_numpy(view[rows.numpy()]).float().to(self.device)

    def _label_loss(self, logits: Logits, rows: Tensor, ignored: Tensor) -> Tensor:
        """[] cross-entropy of the labels, a twentieth of them spread over the names of the data set."""
        name = self.corpus.name[rows]
        labelled = (name >= 0) & ~ignored
        if not bool(labelled.any()):
            return logits.sum() * 0
        name, members = name[labelled].to(self.device), self.corpus.members_of(rows[labelled]).to(self.device)
        wanted = 0.95 * F.one_hot(name, members.shape[1]) + 0.05 * members / members.sum(1, keepdim=True)
        shares = logits[labelled.to(self.device)].masked_fill(~members, -torch.inf).log_softmax(1)
        losses = -(wanted * shares.masked_fill(~members, 0)).sum(1)
        return losses.sum() / len(rows)

    def _texts(self, indices: Tensor, length: int, generator: torch.Generator) -> Features:
        names = [self.texts[index] for index in indices.tolist()]
        tokens = self.clip.tokenize(worded(names, generator, synonym_share=self.recipe.synonym_share))
        longest = int(tokens.argmax(dim=1).max()) + 1
        context = filler(self.clip, min(length, self.clip.context_length - longest), generator)

        def encode(part: Tensor) -> Tensor:
            return encode_text(self.clip, part, context).float()

        share = self.processes.own(tokens).to(self.device)
        return F.normalize(self.processes.encode(encode, share, len(tokens)), dim=-1)

    def _averaged(self, fingerprint: str | None = "averaged") -> Clip:
        """The averaged weights as they are now. A fingerprint is computed if None is given."""
        return self.clip.with_model(copy.deepcopy(self.average), "embedded", fingerprint=fingerprint)

    @torch.inference_mode()
    def _measured(self, phase: str) -> dict[str, float]:
        """Per cent on held-out training pictures: right names, and names that the teacher gives."""
        rows = torch.nonzero(self.corpus.validation).squeeze(1)
        pooled = torch.from_numpy(self.views[0][rows.numpy()]).float().to(self.device)
        clip = self._averaged()
        texts = (
            self.readout.texts()
            if phase == "names"
            else text_weights(clip, Prompts(), self.corpus.names.texts)
        )
        if phase == "image":
            with autocast(self.device, self.recipe.precision):
                parts = [
                    encode_image(clip, self.corpus.pixels(part).to(self.device)).float()
                    for part in rows.split(_CHUNK)
                ]
            pictures = F.normalize(torch.cat(parts), dim=1)
        else:
            pictures = self.readout.pictures(pooled)
        logits = (pictures @ texts.T).cpu()
        answers = self.teacher.logits(pooled).argmax(1).cpu()
        return decisions(self.corpus, rows, logits) | agreement(
            self.corpus, rows, logits[:, :IMAGENET], answers
        )


def _cross_entropy(logits: Logits, taught: Logits) -> Tensor:
    """[] of the teacher's distribution over the first names, which are ImageNet's."""
    return F.cross_entropy(logits[:, :IMAGENET], taught.softmax(1))
