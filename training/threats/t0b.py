"""T0b: pictures that fool another network, judged under ours. Nothing of the victim is known but what
pictures it takes and its labels.

The other network (surrogate) is a CLIP behind a written template, or EfficientNet-Lite0 with its ImageNet
classes. Two attacks a surrogate, the worst of all counts: its features are driven away (KL), and its decision
is attacked (cross-entropy of the right label; for EfficientNet-Lite0 of its own answer to the clean picture,
which needs no map from ImageNet's classes to the labels and leaves none of them out).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn import functional as F

from robustclip.defenses.resize_pad import ResizePad
from robustclip.errors import InvalidInput
from robustclip.models import Clip, Prompts, encode_image, imagenet_names, load_clip, zero_shot
from robustclip.scores import EmbeddingShift, label_score
from robustclip.seeds import derive, row_uniform
from robustclip.threat import Linf
from robustclip.types import Classifier, Cost, Evaluation, Logits, Pixels, Progress, Score, Seeds
from training.data.labelled import LabelledImages
from training.finished import Rows, cached_rows
from training.teachers import TEACHER_SIZE, picture_teacher
from training.threats.bank import CHUNK, feature_attack
from training.threats.base import BallLevel, Bill, Effort, ThreatSet, Work, judged
from training.threats.judging import AtLevel, Pictures, Victim, judge_made, worst_of

EFFICIENTNET = "efficientnet-lite0"
STEPS, MOMENTUM = 40, 0.9
SHRINK = 1 / 1.1  # input diversity: at most so much smaller, as padding by a tenth and bringing to size does
SHARE = 0.3  # of the steps that see a smaller picture


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A network to attack instead. `encode`: pixels of any size to features; `own_answer`: its labels are not
    those of the data.
    """

    name: str
    fingerprint: str
    encode: Callable[[Pixels], Tensor]
    classifier: Classifier
    own_answer: bool


def open_surrogate(
    name: str, data: LabelledImages, templates: tuple[str, ...], device: torch.device | str
) -> Surrogate:
    """EfficientNet-Lite0 or, by its name, a CLIP. Raises FeatureNotInstalled and UnsupportedClip."""
    if name == EFFICIENTNET:
        network = picture_teacher().to(device)

        def logits(pixels: Pixels) -> Tensor:
            return network(_sized(pixels, TEACHER_SIZE))

        return Surrogate(name, EFFICIENTNET, logits, _Resized(imagenet_names(), logits), own_answer=True)
    clip = _clip(name, str(device))
    judge = zero_shot(clip, Prompts(templates=templates), data.labels, scoring="softmax")

    def encode(pixels: Pixels) -> Tensor:
        return encode_image(clip, _sized(pixels, clip.image_size))

    def decide(pixels: Pixels) -> Tensor:
        return judge.judge(F.normalize(encode(pixels), dim=-1))

    return Surrogate(name, clip.fingerprint, encode, _Resized(data.labels, decide), own_answer=False)


def surrogate_fingerprint(name: str, device: torch.device | str) -> str:
    """What tells surrogates of one name apart. Raises UnsupportedClip."""
    return EFFICIENTNET if name == EFFICIENTNET else _clip(name, str(device)).fingerprint


@lru_cache
def _clip(name: str, device: str) -> Clip:
    """Read once, for all cells, data sets and radii."""
    return load_clip(name, device=device)


def climb(score: Score, pixels: Pixels, seeds: Seeds, ball: Linf) -> tuple[Pixels, Cost]:
    """The last of 40 sign steps along the running sum of gradients (Dong et al. 2018, arXiv 1710.06081), each
    divided by its mean size.

    From a random point of the ball, where the feature score has a gradient. The best for the surrogate is not
    the best for the victim: none is kept.
    """
    current = ball.sample(pixels, derive(seeds, "start"))
    drift, cost = torch.zeros_like(pixels), Cost()
    for step in range(STEPS):
        seen = score(current, derive(seeds, f"step-{step}"), grad=True)
        gradient = torch.zeros_like(pixels) if seen.grad is None else seen.grad
        drift = MOMENTUM * drift + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(
            1e-30
        )
        current = ball.project(ball.ascend(current, drift, step_length(ball.radius)), pixels)
        cost = cost.plus(seen.cost)
    return current, cost


@dataclass(frozen=True, eq=False)
class Diverse:
    """A score that in a share of its calls sees a row shrunk and shifted (Xie et al. 2019, arXiv 1803.06978):
    what fools all sizes carries over.
    """

    score: Score

    def __call__(self, pixels: Pixels, seeds: Seeds, *, grad: bool) -> Evaluation:
        chosen = row_uniform(derive(seeds, "diverse"), (1, 1, 1), like=pixels) < SHARE
        inputs = pixels.detach().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            seen_as = torch.where(chosen, ResizePad(low=SHRINK)(inputs, derive(seeds, "resize")), inputs)
        seen = self.score(seen_as.detach(), seeds, grad=grad)
        if seen.grad is None:
            return seen
        return seen._replace(grad=torch.autograd.grad(seen_as, inputs, seen.grad)[0])

    def select(self, rows: Tensor) -> "Diverse":
        return replace(self, score=self.score.select(rows))


@dataclass(frozen=True, eq=False)
class _Resized:
    """A surrogate's decision, as a classifier of the victim's pixels."""

    labels: tuple[str, ...]
    decide: Callable[[Pixels], Tensor]

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        return self.decide(pixels)


def step_length(eps: float) -> float:
    """As long as T0's."""
    return feature_attack(eps, steps=STEPS).step or 0.0


def _sized(pixels: Pixels, size: int) -> Pixels:
    return (
        pixels
        if pixels.shape[-1] == size
        else F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
    )


SCORES = ("embedding_shift", "cross_entropy")


class T0b(BallLevel):
    name = "T0b"
    knows = "another network is attacked (--surrogate) and its pictures tried here"
    needs = ("surrogates",)
    reads_templates = True
    blind = "M5"

    def measure(self, victim: Victim, within: ThreatSet[Linf], effort: Effort, work: Work) -> AtLevel:
        """The passes of the surrogates are in the bill as if they were the victim's."""
        ball, clip, pictures = within.bounds, victim.clip, victim.pictures
        opened = [
            open_surrogate(name, pictures.data, pictures.templates, clip.device) for name in effort.surrogates
        ]
        made = [
            _made(surrogate, score, ball, clip, pictures, work.progress)
            for surrogate in opened
            for score in SCORES
        ]
        worst = worst_of([judge_made(victim, rows, ball, work.progress, self.name) for rows in made])
        attack: dict[str, JsonValue] = {
            "kind": "momentum",
            "ball": ball.model_dump(mode="json"),
            "steps": STEPS,
            "step": step_length(ball.radius),
            "momentum": MOMENTUM,
            "diversity": {"low": SHRINK, "share": SHARE},
            "scores": [*SCORES],
        }
        return AtLevel(worst, {**attack, **self.named(effort)})

    def bill(self, victim: Victim, within: ThreatSet[Linf], effort: Effort) -> Bill:
        versions = len(SCORES) * len(effort.surrogates)  # each is judged by itself
        made = len(victim.pictures.indices) * versions * (3 * STEPS + 1)
        return Bill(versions * judged(victim), made, ",".join(effort.surrogates))

    def check(self, effort: Effort, *, measured: bool, reported: bool) -> None:
        if measured != bool(effort.surrogates):
            raise InvalidInput(
                "T0b needs a surrogate to attack, and a surrogate serves T0b alone.",
                field="--surrogate",
                help="Name both or neither.",
            )

    def named(self, effort: Effort) -> dict[str, JsonValue]:
        return {"surrogates": [*effort.surrogates]}

    def key(self, victim: Victim, effort: Effort) -> dict[str, object]:
        device = victim.clip.device
        return {"surrogates": {name: surrogate_fingerprint(name, device) for name in effort.surrogates}}

    def words(self, effort: Effort, *, randomized: bool) -> list[str]:
        return [word for name in effort.surrogates for word in ("--surrogate", name)]


def _made(
    surrogate: Surrogate, score: str, ball: Linf, clip: Clip, pictures: Pictures, progress: Progress
) -> Rows:
    """[n, 3, S, S] pictures that one attack on one surrogate makes."""
    seeds = pictures.seeds

    def make(chosen: Tensor) -> Rows:
        pixels, targets = pictures.on(clip, chosen)
        with torch.no_grad():
            clean = surrogate.encode(pixels)
        aim: Score = EmbeddingShift(surrogate.encode, clean)
        if score == "cross_entropy":
            answers = clean.argmax(dim=1) if surrogate.own_answer else targets
            aim = label_score("cross_entropy", surrogate.classifier, answers)
        attacked, cost = climb(Diverse(aim), pixels, derive(seeds[chosen], f"T0b-{score}"), ball)
        return Rows(attacked.cpu(), cost.plus(Cost(forward=len(chosen))))

    key = {
        "what": "T0b",
        "surrogate": surrogate.fingerprint,
        "size": clip.preprocessing.name if clip.preprocessing.difference else clip.image_size,
        "data": pictures.data.digest,
        "split": pictures.data.split,
        "score": score,
        "templates": list(pictures.templates),
        "eps": ball.radius,
        "attack": [STEPS, MOMENTUM, SHRINK, SHARE],
        "seed": pictures.seed,
    }
    what = f"T0b pictures {surrogate.name} {score}"
    return cached_rows(pictures.cache, key, pictures.indices, make, chunk=CHUNK, progress=progress, what=what)
