"""The outside judge of our attacks: pyautoattack, with the passes counted that it asks for.

It reseeds the global generator and installs a tracer, so tests run it in a process of its own: `python
tests/outside_judge.py IN OUT`, where IN has a dictionary of tensors and plain values saved by torch and OUT
gets the answer.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor
from toys import ConvClassifier

from robustclip.seeds import draw_seeds
from robustclip.types import Classifier, Cost, Logits, Pixels, Seeds


@dataclass(eq=False)
class Counted:
    """A classifier that counts the rows it is asked for, and those whose gradient is taken: whoever attacks,
    by whatever way.
    """

    classifier: Classifier
    cost: Cost = field(default_factory=Cost)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        self.cost = self.cost.plus(Cost(forward=len(pixels)))
        return self.classifier(_Watched.apply(pixels, self) if pixels.requires_grad else pixels, seeds)


class _Watched(torch.autograd.Function):
    """The identity; whoever goes back through it pays."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, counted: Counted) -> Tensor:
        ctx.counted = counted
        return pixels.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.counted.cost = ctx.counted.cost.plus(Cost(backward=len(grads[0])))
        return grads[0], None


def standing(
    classifier: Classifier,
    pixels: Pixels,
    targets: Tensor,
    *,
    norm: str,
    radius: float,
    attacks: Sequence[str] | None = None,
    queries: int = 5000,
    batch: int = 64,
) -> tuple[Tensor, Cost]:
    """[B] which pictures it leaves standing, and what that took. Without `attacks` its `standard` version,
    else those; `queries` are Square's.
    """
    counted = Counted(classifier)
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    with torch.random.fork_rng():
        judge = AutoAttack(
            lambda inputs: counted(inputs, draw_seeds(0, len(inputs))),
            norm={"linf": "Linf", "l2": "L2"}[norm],
            eps=radius,
            seed=0,
            version="custom" if attacks else "standard",
            attacks=None if attacks is None else list(attacks),
            device=str(pixels.device),
        )
        judge.apgd.n_restarts = judge.apgd_targeted.n_restarts = judge.fab.n_restarts = 1
        judge.apgd_targeted.n_target_classes = judge.fab.n_target_classes = 9
        judge.square.n_queries, judge.square.resc_schedule = queries, True
        adversarial, _ = judge.run_standard_evaluation(pixels, targets, batch_size=batch)
    with torch.no_grad():
        right = classifier(adversarial, draw_seeds(0, len(pixels))).argmax(dim=1) == targets
    return right, counted.cost


def main(source: str, destination: str) -> None:
    """The judge's word about a ConvClassifier."""
    torch.set_num_threads(1)
    given = torch.load(source, weights_only=True)
    victim = ConvClassifier(**given["weights"], labels=tuple(given["labels"]))
    left, cost = standing(victim, given["pixels"], given["targets"], **given["options"])
    torch.save({"standing": left, "forward": cost.forward, "backward": cost.backward}, destination)


if __name__ == "__main__":
    main(*sys.argv[1:])
