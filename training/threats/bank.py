"""What is attacked once and kept: the bank of attacked embeddings that prompts are tuned on, and pictures
that are made against some prompts and judged under any others (T1, static, the matrix of what carries over).

The bank's feature attack is AdvPT's (Zhang et al., ECCV 2024, arXiv 2311.11261). It sees the image tower
without prompts and nothing else: no text, no labels, no visual prompts, no defense. The attack on pictures
knows image tower, visual prompts, labels and the text that it is made against; it knows no defense.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks import PGD
from robustclip.models import Clip, Prompts, ZeroShotClassifier, encode_image, zero_shot
from robustclip.scores import EmbeddingShift, label_score
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import Linf
from robustclip.types import Attacked, Cost, Pixels, Progress, Score, Seeds
from training.data.labelled import LabelledImages
from training.finished import Rows, cached_rows
from training.processes import ALONE, Processes
from training.threats.judging import Pictures

BankStart: TypeAlias = Literal["one_sided", "symmetric"]
BankScore: TypeAlias = Literal["embedding_shift", "cross_entropy", "margin", "targeted"]
CHUNK = 64  # pictures a batch, and a part of the cache


def feature_attack(
    eps: float, *, steps: int, step: float | None = None, start: BankStart = "one_sided"
) -> PGD:
    """Sign-gradient PGD to the last iterate, `step` 1.25 eps / steps unless given; `one_sided` starts in [0,
    eps], as the authors' code does.
    """
    length = 1.25 * eps / steps if step is None else step
    drawn = "one_sided" if start == "one_sided" else "random"
    return PGD(
        ball=Linf(radius=eps), steps=steps, step=length or None, starts=(drawn,), keep="last", stop="never"
    )


def shift_embeddings(clip: Clip, pixels: Pixels, attack: PGD, seeds: Seeds) -> Attacked:
    """Drive raw embeddings away from the clean ones by KL(u(x), u(x_a)), u = softmax over the embedding's
    coordinates.
    """
    encode = partial(encode_image, clip)
    with torch.no_grad():
        clean = encode(pixels)
    attacked = attack(EmbeddingShift(encode, clean), pixels, seeds)
    return attacked._replace(cost=attacked.cost.plus(Cost(forward=len(pixels))))


def embedding_bank(
    clip: Clip,
    data: LabelledImages,
    indices: Tensor,
    attack: PGD,
    *,
    copies: int,
    clean: bool,
    seed: int,
    folder: Path,
    progress: Progress,
    processes: Processes = ALONE,
) -> Rows:
    """[n, M, E] raw float32 embeddings of attacked pictures: `copies` starts of the attack each, then, if
    asked, the clean one (M = copies + clean).

    A ball of radius 0 gives the clean embedding by the same path. Row i depends on the picture's place in
    `data`, not on which others are chosen.
    """
    seeds = draw_seeds(seed, len(data))

    def make(chosen: Tensor) -> Rows:
        pixels = data.pixels(chosen, clip.preprocessing).to(clip.device)
        cost = Cost(forward=len(chosen) * (copies + clean))
        versions: list[Pixels] = []
        for copy in range(copies):
            attacked = shift_embeddings(clip, pixels, attack, derive(seeds[chosen], f"bank-{copy}"))
            cost = cost.plus(attacked.cost)
            versions.append(attacked.pixels)
        with torch.no_grad():
            embeddings = [
                encode_image(clip, version) for version in [*versions, *([pixels] if clean else [])]
            ]
        return Rows(torch.stack(embeddings, dim=1).cpu(), cost)

    key = {**cache_key("bank", clip, data, attack, seed), "copies": copies, "clean": clean}
    return cached_rows(
        folder, key, indices, make, chunk=CHUNK, progress=progress, what="embedding bank", processes=processes
    )


def bank_cost(attack: PGD, *, copies: int, clean: bool) -> Cost:
    """Image passes a picture of `embedding_bank`: the clean embedding, the attack and the embedding of its
    result for each copy.
    """
    steps = attack.steps if attack.ball.radius else 0
    return Cost(copies * (steps + 3) + clean, copies * steps)


@dataclass(frozen=True)
class AwareAttack:
    """PGD under several scores: what a bank faces that knows prompts, labels and targets.

    embedding_shift as AdvPT's; cross_entropy and margin of the target; targeted: cross-entropy toward the
    most likely wrong label.
    """

    scores: tuple[BankScore, ...]
    attack: PGD

    def cost(self) -> Cost:
        """Image passes a picture of `embeddings`."""
        steps = self.attack.steps if self.attack.ball.radius else 0
        return Cost(1 + len(self.scores) * (steps + 2), len(self.scores) * steps)

    def embeddings(
        self, clip: Clip, classifier: ZeroShotClassifier, pixels: Pixels, targets: Tensor, seeds: Seeds
    ) -> tuple[Tensor, Cost]:
        """[B, K + 1, E] raw embeddings, one a score, the clean one last; and their cost."""
        encode = partial(encode_image, clip)
        with torch.no_grad():
            clean = encode(pixels)
            logits = classifier.judge(F.normalize(clean, dim=-1))
        goals = logits.scatter(1, targets[:, None], -torch.inf).argmax(dim=1)
        found: list[Tensor] = []
        cost = Cost(forward=len(pixels))
        for number, name in enumerate(self.scores):
            score: Score
            if name == "embedding_shift":
                score = EmbeddingShift(encode, clean)
            elif name == "targeted":
                score = label_score("cross_entropy", classifier, targets, goals)
            else:
                score = label_score(name, classifier, targets)
            attacked = self.attack(score, pixels, derive(seeds, f"bank-{number}"))
            with torch.no_grad():
                found.append(encode(attacked.pixels))
            cost = cost.plus(attacked.cost).plus(Cost(forward=len(pixels)))
        return torch.stack([*found, clean], dim=1), cost


def aware_bank(
    clip: Clip,
    data: LabelledImages,
    indices: Tensor,
    attack: AwareAttack,
    prompts: Prompts,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    processes: Processes = ALONE,
) -> Rows:
    """[n, K + 1, E] the first filling of a bank that knows its prompts."""
    seeds = draw_seeds(seed, len(data))
    classifier = zero_shot(clip, prompts, data.labels, scoring="softmax")

    def make(chosen: Tensor) -> Rows:
        pixels, targets = (
            data.pixels(chosen, clip.preprocessing).to(clip.device),
            data.targets[chosen].to(clip.device),
        )
        embeddings, cost = attack.embeddings(clip, classifier, pixels, targets, seeds[chosen])
        return Rows(embeddings.cpu(), cost)

    key = {
        **cache_key("aware bank", clip, data, attack.attack, seed),
        "scores": list(attack.scores),
        "prompts": prompts.digest(),
    }
    return cached_rows(
        folder, key, indices, make, chunk=CHUNK, progress=progress, what="embedding bank", processes=processes
    )


def cache_key(what: str, clip: Clip, data: LabelledImages, attack: PGD, seed: int) -> dict[str, object]:
    """What rows depend on that are made of `data` by `attack` on `clip`; add to it whatever else they depend
    on.
    """
    return {
        "what": what,
        "clip": clip.fingerprint,
        "data": data.digest,
        "split": data.split,
        "attack": attack.model_dump(mode="json"),
        "seed": seed,
    }


STEPS = 100


def carried_attack(ball: Linf) -> PGD:
    """PGD-100 to the worst point. No picture stops at its first success: what barely fools one text fools no
    other, which would look like robustness.
    """
    return PGD(ball=ball, steps=STEPS, step=ball.radius / 4, starts=("random",), stop="never")


def pixels_against(
    clip: Clip, prompts: Prompts, pictures: Pictures, attack: PGD, *, progress: Progress, what: str
) -> Rows:
    """[n, 3, S, S] pictures whose cross-entropy under `prompts` was raised; made once for all who judge
    them.
    """
    seeds = pictures.seeds
    classifier = zero_shot(clip, prompts, pictures.data.labels, scoring=pictures.scoring)

    def make(chosen: Tensor) -> Rows:
        pixels, targets = pictures.on(clip, chosen)
        attacked = attack(
            label_score("cross_entropy", classifier, targets), pixels, derive(seeds[chosen], "against")
        )
        return Rows(attacked.pixels.cpu(), attacked.cost)

    key = {
        **cache_key("against", clip, pictures.data, attack, pictures.seed),
        "prompts": prompts.digest(),
        "score": "cross_entropy",
        **({} if pictures.scoring == "softmax" else {"scoring": pictures.scoring}),
    }
    return cached_rows(pictures.cache, key, pictures.indices, make, chunk=CHUNK, progress=progress, what=what)
