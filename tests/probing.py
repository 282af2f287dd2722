"""Decisions of `tiny` to probe, and options that break or spare them, for the tests of the probe's rooms."""

import torch
from torch import Tensor

from robustclip.attacks.pgd import PGD
from robustclip.defenses import bind_chain, parse_defenses
from robustclip.models.classifier import Defended, TorchImageEncoder, text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.probing.options import ProbeOptions
from robustclip.probing.victim import Victim
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf

LABELS = ("cat", "dog", "car", "ship")
SPARED = 1e-6  # a radius within which no decision changes


def victim(
    clip: Clip, defense: str = "none", labels: tuple[str, ...] = LABELS, template: str = "a photo of a {}."
) -> Victim:
    prompts = Prompts(templates=(template,))
    with torch.no_grad():
        weights = text_weights(clip, prompts, labels)
    name = f"{prompts.digest()[:8]}@000000000000"
    return Victim(clip, prompts, name, labels, weights, parse_defenses(defense), TorchImageEncoder(clip))


def picture(clip: Clip, seed: int = 7) -> Tensor:
    return (
        torch.randint(
            0, 256, (3, clip.image_size, clip.image_size), generator=torch.Generator().manual_seed(seed)
        )
        / 255
    )


def served_label(subject: Victim, pixels: Tensor) -> str:
    encoder = TorchImageEncoder(subject.clip)
    logits = Defended(subject.classifier(encoder), bind_chain(subject.defense, encoder))(
        pixels[None], draw_seeds(1, 1)
    )
    return subject.labels[int(logits.argmax())]


def options(radius: float = 8 / 255, **changes: object) -> ProbeOptions:
    everything = {
        "attacks": (PGD(ball=Linf(radius=radius), steps=10),),
        "include": ("curve", "heat", "adversarial"),
    }
    return ProbeOptions.model_validate(everything | changes)
