"""The quality of a purifying network: PSNR and CLIP's accuracy, beside bicubic or leaving the noise; and the
squares that it learns from, with their halves for a super-resolver.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from robustclip.defenses.diffusion import Diffusion
from robustclip.models import Clip, Prompts, TorchImageEncoder, text_weights
from robustclip.purifiers.networks import (
    SCALE,
    Denoiser,
    SuperResolver,
    diffused,
    enlarged,
    one_shot,
    restored,
    shrunk,
)
from robustclip.seeds import derive, draw_seeds, row_normal
from robustclip.types import Pixels, Progress
from training.data.labelled import LabelledImages
from training.data.sampling import seeded
from training.foundry.corpus import Corpus


class Draw(NamedTuple):
    """Squares of a step [B, 3, size, size], and for each a time [B] in [0, 1) and noise like it."""

    pixels: Pixels
    time: Tensor
    noise: Tensor


def draw(corpus: Corpus, rows: Tensor, generator: torch.Generator, *, size: int) -> Draw:
    pixels = squares(corpus.pixels(rows), size, generator)
    time = torch.rand(len(rows), generator=generator)
    return Draw(pixels, time, torch.randn(pixels.shape, generator=generator))


def squares(pixels: Pixels, size: int, generator: torch.Generator) -> Pixels:
    """[B, 3, S, S] -> [B, 3, size, size]: all shrunk to one random side from `size` to S, then each cut at a
    random place and perhaps mirrored.

    Enlarged pictures of 64 pixels and less are smooth. Shrunk, they are as sharp as photographs at a CLIP's
    size.
    """
    full = pixels.shape[-1]
    side = int(torch.randint(size, full + 1, (), generator=generator))
    if side < full:
        pixels = shrunk(pixels, side, side).clamp(0, 1)
    corners = torch.randint(side - size + 1, (len(pixels), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(pixels), generator=generator) < 0.5).tolist()
    cut = [
        picture[:, top : top + size, left : left + size]
        for picture, (top, left) in zip(pixels, corners, strict=True)
    ]
    return torch.stack(
        [picture.flip(-1) if mirror else picture for picture, mirror in zip(cut, mirrored, strict=True)]
    )


def halved(pixels: Pixels) -> Pixels:
    """[B, 3, H, W] -> [B, 3, H // 2, W // 2], in the 8-bit levels that a file of them could hold."""
    height, width = pixels.shape[-2:]
    return (shrunk(pixels, height // SCALE, width // SCALE).clamp(0, 1) * 255).round() / 255


SIGMAS = (0.1, 0.25)
PURIFYING = Diffusion()
_CHUNK = 32

Versions: TypeAlias = Mapping[str, Pixels]  # of the same pictures, by what was done to them


class Reading(NamedTuple):
    """Of a version of all pictures: mean PSNR to the untouched ones, dB (None for those); accuracy, %."""

    psnr: float | None
    accuracy: float


def _silent(done: int, total: int, what: str) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Exam:
    """`count` pictures, read by rows; `right(changed, rows)` [B] bool: which are still named rightly."""

    count: int
    pixels: Callable[[Tensor], Pixels]
    right: Callable[[Pixels, Tensor], Tensor]

    def take(
        self, change: Callable[[Pixels, Tensor], Versions], progress: Progress, what: str
    ) -> dict[str, Reading]:
        """A reading of the untouched pictures and of each version; `change(pixels, rows)` makes versions."""
        errors: dict[str, list[Tensor]] = {}
        hits: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for rows in torch.arange(self.count).split(_CHUNK):
                clean = self.pixels(rows)
                for name, version in {"untouched": clean, **change(clean, rows)}.items():
                    served = version.clamp(0, 1)
                    errors.setdefault(name, []).append((served - clean).square().mean(dim=(1, 2, 3)))
                    hits.setdefault(name, []).append(self.right(served, rows))
                progress(int(rows[-1]) + 1, self.count, what)
        return {
            name: Reading(
                None if name == "untouched" else round(_psnr(torch.cat(errors[name])), 2),
                round(100 * torch.cat(hits[name]).float().mean().item(), 1),
            )
            for name in errors
        }


def examine(
    network: SuperResolver | Denoiser,
    exam: Exam,
    *,
    seed: int = 0,
    progress: Progress = _silent,
    what: str = "",
) -> dict[str, Reading]:
    """All readings of a network, deterministic given the seed of the noise.

    Of a super-resolver: `bicubic` and `network` double a picture of half the size; `purified` is doubled and
    shrunk back. Of a denoiser, for each noise: `noisy_S` as it is and `denoised_S` in one step; `purified` is
    noised and restored as the defense `diffusion` does by default.
    """
    if isinstance(network, SuperResolver):
        return exam.take(partial(_enlargements, network), progress, what)
    seeds = draw_seeds(seed, exam.count)
    return exam.take(lambda pixels, rows: _restorations(network, pixels, seeds[rows]), progress, what)


def shortcomings(readings: Mapping[str, Reading]) -> list[str]:
    """In words: where a network is no better than bicubic or than leaving the noise."""
    pairs = [
        ("bicubic", "network"),
        *((name, name.replace("noisy", "denoised")) for name in readings if name.startswith("noisy")),
    ]
    complaints: list[str] = []
    for free, costly in pairs:
        if free in readings:
            base, reading = readings[free], readings[costly]
            if (reading.psnr or 0.0) <= (base.psnr or 0.0):
                complaints.append(f"{costly} has {reading.psnr} dB, {free} {base.psnr}")
            if reading.accuracy <= base.accuracy:
                complaints.append(
                    f"of {costly} pictures {reading.accuracy} % are named rightly, of {free} ones "
                    f"{base.accuracy} %"
                )
    return complaints


def held_out(corpus: Corpus, clip: Clip, count: int, seed: int) -> Exam:
    """Pictures that nothing was trained on, to be named among the names of their data sets; read once."""
    rows = corpus.validation.nonzero().flatten()
    rows = rows[torch.randperm(len(rows), generator=seeded(seed, "purify-check"))[:count]]
    used = torch.cat([corpus.names.members[name] for name in corpus.sets]).unique()
    own = corpus.members_of(rows)[:, used]
    pixels = torch.cat([_at(corpus.pixels(chunk), clip.image_size) for chunk in rows.split(_CHUNK)])
    labels = tuple(corpus.names.texts[index] for index in used.tolist())
    return _exam(clip, lambda rows: pixels[rows], labels, torch.searchsorted(used, corpus.name[rows]), own)


def exam_of(clip: Clip, pictures: LabelledImages) -> Exam:
    """Labelled pictures, to be named among all labels; read again for each network."""
    own = torch.ones(len(pictures), len(pictures.labels), dtype=torch.bool)
    return _exam(
        clip, lambda rows: pictures.pixels(rows, clip.preprocessing), pictures.labels, pictures.targets, own
    )


def _exam(
    clip: Clip, pixels: Callable[[Tensor], Pixels], labels: tuple[str, ...], targets: Tensor, own: Tensor
) -> Exam:
    with torch.no_grad():
        weights = text_weights(clip, Prompts(), labels)
    encoder = TorchImageEncoder(clip)

    def right(changed: Pixels, rows: Tensor) -> Tensor:
        features = encoder(changed.to(clip.device), None)
        return (features @ weights.T).cpu().masked_fill(~own[rows], -torch.inf).argmax(dim=1) == targets[rows]

    return Exam(len(targets), pixels, right)


def _enlargements(network: SuperResolver, pixels: Pixels, rows: Tensor) -> Versions:
    height, width = pixels.shape[-2:]
    half = halved(pixels)
    return {
        "bicubic": _at(enlarged(half), height),
        "network": _at(_on(network, half), height),
        "purified": shrunk(_on(network, pixels).clamp(0, 1), height, width),
    }


def _restorations(network: Denoiser, pixels: Pixels, seeds: Tensor) -> Versions:
    device, shape = next(network.parameters()).device, tuple(pixels.shape[1:])
    versions: dict[str, Tensor] = {}
    for sigma in SIGMAS:
        noisy = pixels + sigma * row_normal(derive(seeds, f"noise-{sigma}"), shape, like=pixels)
        versions[f"noisy_{sigma}"] = noisy
        versions[f"denoised_{sigma}"] = one_shot(network, noisy.to(device), sigma).cpu()
    noise = row_normal(derive(seeds, "purify"), shape, like=pixels)
    start = diffused(pixels, noise, PURIFYING.time).to(device)
    versions["purified"] = restored(network, start, PURIFYING.time, steps=PURIFYING.steps).cpu()
    return versions


def _on(network: SuperResolver, pixels: Pixels) -> Tensor:
    return network(pixels.to(next(network.parameters()).device)).cpu()


def _at(pixels: Tensor, size: int) -> Tensor:
    """The same at another size: twice the half of an odd size is a pixel short."""
    return pixels if pixels.shape[-1] == size else shrunk(pixels, size, size).clamp(0, 1)


def _psnr(errors: Tensor) -> float:
    return (-10 * errors.clamp_min(1e-10).log10()).mean().item()
