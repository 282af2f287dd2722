"""T0b: pictures that fool another network, judged under ours. Nothing of the victim is known but what
pictures it takes and its labels.

Two attacks a surrogate, the worst of all counts: its features are driven away (KL), and its decision is
attacked (cross-entropy of the right label; for EfficientNet-Lite0 of its own answer to the clean picture,
which needs no map from ImageNet's classes to the labels and leaves none of them out).
"""

import torch
from pydantic import JsonValue
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.scores.kinds import EmbeddingShift, label_score
from robustclip.seeds import derive
from robustclip.threat import Linf
from robustclip.types import Cost, Progress, Score
from training.cache import Rows, cached_rows
from training.threats.bank import CHUNK
from training.threats.base import BallLevel, Bill, Effort, ThreatSet, Work, judged
from training.threats.judging import AtLevel, Pictures, Victim, judge_made, worst_of
from training.threats.surrogates import (
    MOMENTUM,
    SHARE,
    SHRINK,
    STEPS,
    Diverse,
    Surrogate,
    climb,
    open_surrogate,
    step_length,
    surrogate_fingerprint,
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
        "size": clip.image_size,
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
