"""Zero-shot classification with CLIP, and honest measurements of its robustness.

    prompts = robustclip.load_prompts("handcrafted", clip)
    classifier = robustclip.deploy(clip, prompts, ["cat", "dog"], defense="jpeg:75")
    classifier(picture)
    robustclip.probe(classifier, picture, eps="4/255")

Importing it imports nothing else: each name below is imported when it is first used, so that `robustclip
--help` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompts_store.store import load_prompts
    from robustclip.attacks.apgd import APGD
    from robustclip.attacks.ensemble import Ensemble
    from robustclip.attacks.pgd import PGD
    from robustclip.defenses import parse_defenses
    from robustclip.deployed import deploy
    from robustclip.face import attack, certify, measure, probe
    from robustclip.images import load_pixels
    from robustclip.models.classifier import zero_shot
    from robustclip.models.clip import load_clip
    from robustclip.models.prompts import Prompts
    from robustclip.threat import L2, Linf

__all__ = [
    "APGD",
    "L2",
    "PGD",
    "Ensemble",
    "Linf",
    "Prompts",
    "attack",
    "certify",
    "deploy",
    "load_clip",
    "load_pixels",
    "load_prompts",
    "measure",
    "parse_defenses",
    "probe",
    "zero_shot",
]

DEFAULT_BACKBONE = "mini-robust"  # of the service and all commands: one serves what another publishes

# Where each name is. `load_prompts` reads the sets that ship with the store, which stands above this library:
# it is named here as text, so that no module of the library depends on the store.
_FACE = {
    "APGD": "robustclip.attacks.apgd",
    "Ensemble": "robustclip.attacks.ensemble",
    "L2": "robustclip.threat",
    "Linf": "robustclip.threat",
    "PGD": "robustclip.attacks.pgd",
    "Prompts": "robustclip.models.prompts",
    "attack": "robustclip.face",
    "certify": "robustclip.face",
    "deploy": "robustclip.deployed",
    "load_clip": "robustclip.models.clip",
    "load_pixels": "robustclip.images",
    "load_prompts": "prompts_store.store",
    "measure": "robustclip.face",
    "parse_defenses": "robustclip.defenses",
    "probe": "robustclip.face",
    "zero_shot": "robustclip.models.classifier",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _FACE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_FACE[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})
