"""Decisions of `tiny` to probe, and options that break or spare them, for the tests of the probe's rooms."""

import torch
from torch import Tensor

from robustclip.attacks.pgd import PGD
from robustclip.deployed import DeployedClassifier, deploy
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.probing.options import ProbeOptions
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf

LABELS = ("cat", "dog", "car", "ship")
SPARED = 1e-6  # a radius within which no decision changes


def victim(
    clip: Clip, defense: str = "none", labels: tuple[str, ...] = LABELS, template: str = "a photo of a {}."
) -> DeployedClassifier:
    prompts = Prompts(templates=(template,))
    return deploy(clip, prompts, labels, defense=defense, name=f"{prompts.digest()[:8]}@000000000000")


def picture(clip: Clip, seed: int = 7) -> Tensor:
    return (
        torch.randint(
            0, 256, (3, clip.image_size, clip.image_size), generator=torch.Generator().manual_seed(seed)
        )
        / 255
    )


def served_label(subject: DeployedClassifier, pixels: Tensor) -> str:
    return subject.labels[int(subject.served(pixels[None], draw_seeds(1, 1)).argmax())]


def options(radius: float = 8 / 255, **changes: object) -> ProbeOptions:
    everything = {
        "attacks": (PGD(ball=Linf(radius=radius), steps=10),),
        "include": ("curve", "heat", "adversarial"),
    }
    return ProbeOptions.model_validate(everything | changes)
