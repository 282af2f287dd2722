"""AdvPT: Adversarial Prompt Tuning (Zhang et al., ECCV 2024, arXiv 2311.11261).

The image tower is attacked once, without text or labels; the attacked embeddings are stored; a text context
is tuned to classify them. The defaults follow the first release of the authors' code (a later one never
reaches the bank and trains CoOp).

Deviations: one resize everywhere (theirs: bilinear for the bank, bicubic at test); the start is clipped to
[0, 1] (theirs is not); prompts are float32 (theirs fp16); the last, smaller batch of an epoch is used.
"""

from typing import Literal

from pydantic import Field

from robustclip.attacks import PGD
from robustclip.threat import LinfRadius
from training.learning.objectives.text import Bank, TextTuning
from training.threats.bank import BankStart, feature_attack


class AdvPT(TextTuning):
    """Tune a text context on a bank of attacked embeddings."""

    kind: Literal["advpt"] = "advpt"
    eps: LinfRadius = Field(8 / 255, description="radius of the bank's attack, in pixel units or like 8/255")
    steps: int = Field(10, ge=1, le=1000, description="steps of the bank's attack")
    step: LinfRadius | None = Field(None, gt=0, description="length of a step; none: 1.25 eps / steps")
    start: BankStart = Field(
        "one_sided", description="where the attack starts: in [0, eps] (the authors' code) or [-eps, eps]"
    )
    bank_copies: int = Field(
        1, ge=1, le=16, description="attacked embeddings a picture, each from a start of its own"
    )
    bank_clean: bool = Field(False, description="keep the clean embedding beside the attacked ones")

    def attack(self) -> PGD:
        return feature_attack(self.eps, steps=self.steps, step=self.step, start=self.start)

    def bank(self) -> Bank:
        return Bank(self.attack(), self.bank_copies, self.bank_clean)

    def attack_facts(self) -> dict[str, object] | None:
        return {"score": "embedding_shift", **self.attack().model_dump(mode="json")}
