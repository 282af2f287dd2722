"""AdvPT's feature attack over a data set, made once and kept: the bank that prompts are tuned on, and the pictures of threat level T0.

The attack sees the image tower without prompts and nothing else: no text, no labels, no visual prompts, no defense (METHODS 2.1, 2.2).
"""

from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from robustclip.attacks.pgd import PGD
from robustclip.clip import Clip
from robustclip.scores import EmbeddingShift
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import Linf
from robustclip.towers import encode_image
from robustclip.types import Attacked, Cost, Pixels, Progress, Seeds
from training.cache import Rows, cached_rows
from training.data import LabelledImages

BankStart: TypeAlias = Literal["one_sided", "symmetric"]
CHUNK = 64  # pictures a batch, and a part of the cache


def feature_attack(eps: float, *, steps: int, step: float | None = None, start: BankStart = "one_sided") -> PGD:
    """Sign-gradient PGD to the last iterate, `step` 1.25 eps / steps unless given; `one_sided` starts in [0, eps], as the authors' code does."""
    length = 1.25 * eps / steps if step is None else step
    drawn = "one_sided" if start == "one_sided" else "random"
    return PGD(ball=Linf(radius=eps), steps=steps, step=length or None, starts=(drawn,), keep="last", stop="never")


def shift_embeddings(clip: Clip, pixels: Pixels, attack: PGD, seeds: Seeds) -> Attacked:
    """Drive raw embeddings away from the clean ones by KL(u(x), u(x_a)), u = softmax over the embedding's coordinates (METHODS 2.1)."""

    def encode(inputs: Pixels) -> Tensor:
        return encode_image(clip, inputs)

    with torch.no_grad():
        clean = encode(pixels)
    attacked = attack(EmbeddingShift(encode, clean), pixels, seeds)
    return attacked._replace(cost=attacked.cost.plus(Cost(forward=len(pixels))))


def embedding_bank(
    clip: Clip, data: LabelledImages, indices: Tensor, attack: PGD, *, copies: int, clean: bool, seed: int, folder: Path, progress: Progress
) -> Rows:
    """[n, M, E] raw float32 embeddings of attacked pictures: `copies` starts of the attack each, then, if asked, the clean one (M = copies + clean).

    A ball of radius 0 gives the clean embedding by the same path. Row i depends on the picture's place in `data`, not on which others are chosen.
    """
    seeds = draw_seeds(seed, len(data))

    def make(chosen: Tensor) -> tuple[Tensor, Cost]:
        pixels = data.pixels(chosen, clip.image_size).to(clip.device)
        cost = Cost(forward=len(chosen) * (copies + clean))
        versions: list[Pixels] = []
        for copy in range(copies):
            attacked = shift_embeddings(clip, pixels, attack, derive(seeds[chosen], f"bank-{copy}"))
            cost = cost.plus(attacked.cost)
            versions.append(attacked.pixels)
        with torch.no_grad():
            embeddings = [encode_image(clip, version) for version in [*versions, *([pixels] if clean else [])]]
        return torch.stack(embeddings, dim=1).cpu(), cost

    key = {**_key("bank", clip, data, attack, seed), "copies": copies, "clean": clean}
    return cached_rows(folder, key, indices, make, chunk=CHUNK, progress=progress, what="embedding bank")


def shifted_pixels(clip: Clip, data: LabelledImages, indices: Tensor, attack: PGD, *, seed: int, folder: Path, progress: Progress) -> Rows:
    """[n, 3, S, S] pictures of threat level T0, the same for every prompt set and defense measured on them."""
    seeds = draw_seeds(seed, len(data))

    def make(chosen: Tensor) -> tuple[Tensor, Cost]:
        pixels = data.pixels(chosen, clip.image_size).to(clip.device)
        attacked = shift_embeddings(clip, pixels, attack, derive(seeds[chosen], "T0"))
        return attacked.pixels.cpu(), attacked.cost

    key = _key("T0", clip, data, attack, seed)
    return cached_rows(folder, key, indices, make, chunk=CHUNK, progress=progress, what="T0 pictures")


def _key(what: str, clip: Clip, data: LabelledImages, attack: PGD, seed: int) -> dict[str, object]:
    return {"what": what, "clip": clip.fingerprint, "data": data.digest, "split": data.split, "attack": attack.model_dump(mode="json"), "seed": seed}
