"""The accuracy of a hardened tower on held-out training pictures, clean and under attacks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustclip.types import Pixels
from training.data.sampling import seeded
from training.foundry.corpus import Corpus
from training.foundry.hardening.attack import Strength
from training.foundry.hardening.losses import Targets, TextHead, among, label_loss

CLEAN_PICTURES = 2048
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Checker:
    """The same pictures and noise at every check; accuracies in per cent, among a data set's names.

    A picture without a label is right if it is named as the `original` tower names it.
    """

    corpus: Corpus
    head: TextHead
    original: nn.Module
    pictures: int
    seed: int

    def clean(self, tower: nn.Module) -> dict[str, float]:
        """By data set, of at most 2048 pictures in all."""
        rows = self._rows(CLEAN_PICTURES)
        hits = torch.cat(
            [self._right(tower, self._pixels(chunk), self.targets(chunk)) for chunk in rows.split(_CHUNK)]
        ).cpu()
        source = self.corpus.source[rows]
        return {
            name: round(100 * hits[source == index].float().mean().item(), 1)
            for index, name in enumerate(self.corpus.sets)
            if bool((source == index).any())
        }

    def robust(self, tower: nn.Module, *strengths: Strength, pictures: int | None = None) -> list[float]:
        """The accuracy under each attack on the label's cross-entropy; pictures wrong before count."""
        rows = self._rows(pictures or self.pictures)
        standing = [0] * len(strengths)
        for chunk in rows.split(_CHUNK):
            pixels, targets = self._pixels(chunk), self.targets(chunk)
            noise = 2 * torch.rand(pixels.shape, generator=seeded(self.seed, "check-noise")) - 1
            right = self._right(tower, pixels, targets)
            if not bool(right.any()):
                continue
            pixels, noise, targets = pixels[right], noise.to(pixels.device)[right], targets.select(right)
            for index, strength in enumerate(strengths):
                attacked = strength.attack(
                    lambda inputs, known=targets: label_loss(self.head(tower(inputs)), known), pixels, noise
                )
                standing[index] += int(self._right(tower, attacked, targets).sum())
        return [round(100 * count / len(rows), 1) for count in standing]

    def targets(self, rows: Tensor) -> Targets:
        with torch.no_grad():
            return targets_of(self.corpus, self.head, rows, self.original(self._pixels(rows)))

    def _rows(self, count: int) -> Tensor:
        rows = torch.nonzero(self.corpus.validation).squeeze(1)
        return rows[torch.randperm(len(rows), generator=seeded(self.seed, "check-rows"))[:count]]

    def _pixels(self, rows: Tensor) -> Pixels:
        return self.corpus.pixels(rows).to(self.head.weights.device)

    @torch.no_grad()
    def _right(self, tower: nn.Module, pixels: Pixels, targets: Targets) -> Tensor:
        return among(self.head(tower(pixels)), targets.members).argmax(dim=1) == targets.name


def targets_of(corpus: Corpus, head: TextHead, rows: Tensor, natural: Tensor | None) -> Targets:
    """The targets of these rows. `natural` [B, E]: the original tower's embeddings of the same pictures.

    None will do where every picture has a label and no loss asks what the original tower answers.
    """
    device = head.weights.device
    name, members = corpus.name[rows].to(device), corpus.members_of(rows).to(device)
    if natural is None:
        return Targets(name, members)
    imagenet = corpus.names.members.get("imagenet", torch.arange(len(corpus.names.texts)))
    opinion = head(natural)[:, : len(imagenet)].softmax(dim=1)
    return Targets(torch.where(name < 0, opinion.argmax(dim=1), name), members, opinion)
