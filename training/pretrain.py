"""`robustclip pretrain`: make a small CLIP from labelled pictures and two teachers, in about two hours on two cores.

Phase `frozen` trains everything behind the convolutional stem on stem features of a few augmented views, computed once. Phase `joint` fine-tunes
the whole on fresh augmentations. Phase `broad` does so again from warm rates with every name in every step: a name without pictures then gets its
share of each picture that the teacher half takes for it, not only in the few steps that happen to draw it. The loss of a picture is half
cross-entropy of its label among the names of its own data set, half cross-entropy of the teacher's distribution over ImageNet names, so that names
without pictures are learnt too; texts are also pulled toward a sentence encoder's geometry.
Every step draws from its own seed: a killed run resumes from its last checkpoint and ends with the same weights.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from robustclip.backbones import build, write_weights
from robustclip.backbones.stem import ConvStem
from robustclip.classifier import text_weights
from robustclip.clip import Clip, describe
from robustclip.errors import InvalidInput
from robustclip.files import replacing, write_atomically
from robustclip.prompts import Prompts
from robustclip.seeds import derive
from robustclip.towers import encode_image, encode_patches, encode_text
from robustclip.types import Progress
from training.captions import MAX_FILLER, filler, vocabulary, worded
from training.corpus import Corpus, augment, build_corpus, cached_array
from training.memory import keep_freed_memory
from training.progress import bar
from training.teachers import imagenet_weights, picture_teacher, sentence_teacher
from training.weights import average_into, inside_stem, parameter_groups

MINI: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 96, "layers": 6, "width": 256, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 3},
    "stem": "efficientnet_lite0",
    "mean": [127 / 255] * 3,
    "std": [128 / 255] * 3,
}
Phase = Literal["frozen", "joint", "broad"]
LATER: dict[Phase, set[str]] = {  # what a phase doesn't depend on yet: its checkpoint serves runs that differ in these
    "frozen": {"joint_samples", "joint_batch", "joint_rate", "stem_rate", "broad_samples"},
    "joint": {"broad_samples"},
    "broad": set(),
}
CHECKPOINT_STEPS = 100  # also how often validation is measured


class Recipe(BaseModel):
    """Everything that decides the weights, besides the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    views: int = 3
    frozen_samples: int = 230_400
    joint_samples: int = 245_760
    broad_samples: int = 245_760
    batch: int = 768
    joint_batch: int = 512
    rate: float = 1e-3
    joint_rate: float = 5e-4
    stem_rate: float = 4e-4
    logit_scale: float = 30.0
    weight_decay: float = 0.05
    names_a_step: int = 384
    words_a_step: int = 64
    words: int = 20_000
    filler_share: float = 0.3
    synonym_share: float = 0.25
    geometry: float = 1.0
    average: float = 0.997
    limit: int = 0


def main(argv: list[str] | None = None) -> int:
    """Train the embedded backbone from labelled pictures and two teachers, resumable."""
    parser = argparse.ArgumentParser(prog="robustclip pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds tiny-imagenet-200, cifar-10, caltech-101, clothing-small")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/pretrain"), help="caches, checkpoints and log (default: %(default)s); an existing run resumes"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain/mini"), help="writes OUT.json and OUT.safetensors (default: %(default)s)")
    for name, field in Recipe.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=cast(Any, field.annotation), default=field.default, help="(default: %(default)s)")
    arguments = vars(parser.parse_args(argv))
    data, run, out = arguments.pop("data"), arguments.pop("run"), arguments.pop("out")
    recipe = Recipe(**arguments)
    keep_freed_memory()
    with bar() as progress:
        clip = pretrain(data, run, recipe, progress=progress)
    with replacing(out.with_suffix(".safetensors")) as partial:
        write_weights(clip.model, partial)
    write_atomically(out.with_suffix(".json"), (json.dumps(MINI | {"recipe": recipe.model_dump()}, indent=2) + "\n").encode())
    print(f"wrote {out.with_suffix('.safetensors')}")
    return 0


def pretrain(data: Path, run: Path, recipe: Recipe, *, progress: Progress) -> Clip:
    """Both phases, resumed from `run` if it holds a checkpoint; the averaged weights as a frozen CLIP."""
    corpus = build_corpus(data, run / "cache", size=96, teacher=picture_teacher, seed=recipe.seed, limit=recipe.limit, progress=progress)
    words = vocabulary(recipe.words)
    geometry = _geometry(run / "cache" / f"geometry-{recipe.words}.npy", [*corpus.names.texts, *words])
    torch.manual_seed(recipe.seed)  # open_clip initialises from the global generator
    model = build(MINI)
    cast(ConvStem, cast(Any, model).visual.conv1).load_imagenet(imagenet_weights())
    torch.nn.init.constant_(cast(Any, model).logit_scale, math.log(recipe.logit_scale))
    clip = describe(model, "mini", "pretraining", mean=torch.tensor(MINI["mean"]), std=torch.tensor(MINI["std"]))
    return Trainer(clip, corpus, words, geometry, recipe, run, progress).run_phases()


class Trainer:
    """The state of a run: model, its average, a linear reading of the sentence encoder's space, optimiser, step."""

    def __init__(self, clip: Clip, corpus: Corpus, words: tuple[str, ...], geometry: Tensor, recipe: Recipe, run: Path, progress: Progress) -> None:
        self.clip, self.corpus, self.recipe, self.run, self.progress = clip, corpus, recipe, run, progress
        self.texts = [*corpus.names.texts, *words]
        self.geometry = geometry
        self.model = cast(nn.Module, clip.model)
        self.reading = nn.Linear(clip.embed_dim, geometry.shape[1])
        self.average = copy.deepcopy(self.model)
        self.trained = torch.nonzero(~corpus.validation).squeeze(1)
        self.views: list[Any] = []

    def run_phases(self) -> Clip:
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
                group["lr"] = rate * min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
            losses = self._losses(phase, step, batch)
            optimizer.zero_grad(set_to_none=True)
            cast(Tensor, sum(losses.values())).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            self._settle(step)
            self.progress(step + 1, steps, f"{phase}: " + ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
            if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
                accuracy = self._validate()
                line = {"phase": phase, "step": step + 1, "samples": (step + 1) * batch, "seconds": round(time.monotonic() - began), **accuracy}
                with (self.run / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line | {name: round(loss.item(), 4) for name, loss in losses.items()}) + "\n")
                self._save(checkpoint, optimizer, step + 1)

    def _losses(self, phase: Phase, step: int, batch: int) -> dict[str, Tensor]:
        recipe, corpus = self.recipe, self.corpus
        generator = torch.Generator().manual_seed(int(derive(torch.tensor([recipe.seed]), f"{phase}-{step}")))
        rows = self.trained[torch.randint(len(self.trained), (batch,), generator=generator)]
        opinion = torch.from_numpy(corpus.teacher[rows.numpy()]).float()
        chosen = self._choose_names(corpus.name[rows], opinion, generator) if phase != "broad" else torch.arange(len(corpus.names.texts))
        words = len(corpus.names.texts) + torch.randperm(len(self.texts) - len(corpus.names.texts), generator=generator)[: recipe.words_a_step]
        length = int(torch.randint(1, MAX_FILLER + 1, (), generator=generator)) if torch.rand((), generator=generator) < recipe.filler_share else 0
        with torch.autocast("cpu", torch.bfloat16):
            texts = self._texts(torch.cat([chosen, words]), length, generator)
            features = self._images(phase, rows, generator)
        logits = self.clip.logit_scale.clamp(max=100) * features @ texts[: len(chosen)].T  # [B, names]
        own, imagenet = self._members(chosen, corpus.source[rows])
        labels = (chosen[None] == corpus.name[rows][:, None]).float()
        labels = 0.95 * labels + 0.05 * own / own.sum(dim=1, keepdim=True)
        soft = torch.where(imagenet, opinion[:, chosen.clamp(max=999)], 0.0)
        kept = soft.sum(dim=1, keepdim=True)
        loss_label = -(labels * logits.masked_fill(~own, -torch.inf).log_softmax(dim=1).masked_fill(~own, 0)).sum(dim=1).mean()
        teaching = logits.masked_fill(~imagenet, -torch.inf).log_softmax(dim=1).masked_fill(~imagenet, 0)
        loss_teacher = -(soft / kept.clamp_min(1e-4) * teaching).sum(dim=1).mul(kept.squeeze(1)).mean()
        aligned = F.cosine_similarity(self.reading(texts), self.geometry[torch.cat([chosen, words])], dim=1)
        return {"label": 0.5 * loss_label, "teacher": 0.5 * loss_teacher, "geometry": recipe.geometry * (1 - aligned).mean()}

    def _choose_names(self, true: Tensor, opinion: Tensor, generator: torch.Generator) -> Tensor:
        """The names of a step: all true ones, every picture's likeliest in the teacher's eyes, and random ones; sorted, distinct.

        Texts are what a step pays for while the stem is frozen: 600 names took four times as long as 512 pictures.
        """
        wanted = torch.cat([true, opinion.argmax(dim=1)]).unique()
        filling = torch.randperm(len(self.corpus.names.texts), generator=generator)[: max(self.recipe.names_a_step - len(wanted), 0)]
        return torch.cat([wanted, filling]).unique()

    def _members(self, chosen: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """[B, names] bool: is a chosen name one of the picture's own data set; is it ImageNet's."""
        members = self.corpus.names.members
        own = torch.stack([torch.isin(chosen, members[name]) for name in self.corpus.sets])
        return own[source], torch.isin(chosen, members["imagenet"]).expand(len(source), -1)

    def _texts(self, indices: Tensor, length: int, generator: torch.Generator) -> Tensor:
        tokens = self.clip.tokenize(worded([self.texts[index] for index in indices.tolist()], generator, synonym_share=self.recipe.synonym_share))
        longest = int(tokens.argmax(dim=1).max()) + 1
        context = filler(self.clip, min(length, self.clip.context_length - longest), generator)
        return F.normalize(encode_text(self.clip, tokens, context).float(), dim=-1)

    def _images(self, phase: Phase, rows: Tensor, generator: torch.Generator) -> Tensor:
        if phase != "frozen":
            return F.normalize(encode_image(self.clip, augment(self.corpus.pixels(rows), generator)).float(), dim=-1)
        view = self.views[int(torch.randint(len(self.views), (), generator=generator))]
        grid = torch.from_numpy(view[rows.numpy()]).float()
        patches = cast(Any, self.model).visual.conv1.project(grid).flatten(2).transpose(1, 2)
        return F.normalize(encode_patches(self.clip, patches).float(), dim=-1)

    def _view(self, index: int) -> Any:
        """Stem features of all pictures: view 0 as they are, the others augmented."""
        stem, count, size = cast(Any, self.model).visual.conv1, len(self.corpus.name), self.clip.image_size

        def convolve() -> Any:
            for start in range(0, count, 256):
                pixels = self.corpus.pixels(torch.arange(start, min(start + 256, count)))
                if index:
                    pixels = augment(pixels, torch.Generator().manual_seed(index * 1_000_003 + start))
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                    images = (pixels - self.clip.mean[:, None, None]) / self.clip.std[:, None, None]
                    yield stem.convolve(images).half().contiguous().numpy()

        path = self.run / "cache" / f"stem-{self.recipe.limit}-{index}.npy"
        side = size // MINI["vision_cfg"]["patch_size"]
        return cached_array(path, (count, stem.channels, side, side), np.float16, convolve, self.progress, f"stem features, view {index}")

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """AdamW; the convolutions of the stem do not learn in phase `frozen`; tables, norms and biases don't decay."""
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
        """Accuracy of the averaged weights on pictures kept back from the training files, among the trained names of each set, per cent."""
        clip = describe(copy.deepcopy(self.average), "mini", "validation", mean=self.clip.mean, std=self.clip.std, fingerprint="validation")
        result: dict[str, float] = {}
        for index, name in enumerate(self.corpus.sets):
            members = self.corpus.names.members[name]
            weights = text_weights(clip, Prompts(), tuple(self.corpus.names.texts[member] for member in members.tolist()))
            rows = torch.nonzero(self.corpus.validation & (self.corpus.source == index)).squeeze(1)
            hits = [self._hits(clip, chunk, members, weights) for chunk in rows.split(256)]
            result[name] = round(100 * torch.cat(hits).float().mean().item(), 1) if hits else 0.0
        return result

    def _hits(self, clip: Clip, rows: Tensor, members: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            features = encode_image(clip, self.corpus.pixels(rows))
        return members[(features.float() @ weights.T).argmax(dim=1)] == self.corpus.name[rows]

    def _save(self, path: Path, optimizer: torch.optim.Optimizer, step: int) -> None:
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(), "reading": self.reading.state_dict()}
        with replacing(path) as partial:
            torch.save(state | {"optimizer": optimizer.state_dict(), "step": step, "recipe": self.recipe.model_dump()}, partial)

    def _resume(self, phase: Phase, path: Path, optimizer: torch.optim.Optimizer) -> int:
        if not path.exists():
            return 0
        state = cast(dict[str, Any], torch.load(path, weights_only=True))
        changed = [name for name, value in self.recipe.model_dump(exclude=LATER[phase]).items() if state["recipe"].get(name) != value]
        if changed:
            raise InvalidInput(f"{path} was made with another {', '.join(changed)}.", field="--run", help="Use another --run, or the same options.")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.reading.load_state_dict(state["reading"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])


def _geometry(path: Path, texts: list[str], encode: Callable[[], Callable[[list[str]], Tensor]] = sentence_teacher) -> Tensor:
    """[T, 384] sentence embeddings of "a photo of a ..." for names and words, computed once."""
    if not path.exists():
        with replacing(path) as partial, partial.open("wb") as file:  # given a name, numpy would add a suffix to it
            np.save(file, encode()([f"a photo of a {text}." for text in texts]).numpy())
    return torch.from_numpy(np.load(path))
