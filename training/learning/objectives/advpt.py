"""AdvPT: Adversarial Prompt Tuning (Zhang et al., ECCV 2024, arXiv 2311.11261).

The image tower is attacked once, without text or labels; the attacked embeddings are stored; a text context
is tuned so that they are classified rightly. The defaults are the exact preset of METHODS 2.1, which follows
the first release of the authors' code (a later one never reaches the bank and trains CoOp).

Deviations: one resize everywhere (theirs: bilinear for the bank, bicubic at test); the start is clipped to
[0, 1] (theirs is not); prompts are float32 (theirs fp16); the last, smaller batch of an epoch is used.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from robustclip.attacks.pgd import PGD
from robustclip.models.clip import Clip
from robustclip.threat import LinfRadius
from robustclip.types import Cost, Progress
from training.data.labelled import LabelledImages
from training.learning.objectives.base import Examples
from training.learning.objectives.text import TextTuning, bank_examples
from training.processes import ALONE, Processes
from training.threats.bank import BankStart, bank_cost, embedding_bank, feature_attack


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

    def prepare(
        self,
        clip: Clip,
        data: LabelledImages,
        indices: Tensor,
        *,
        seed: int,
        folder: Path,
        progress: Progress,
        processes: Processes = ALONE,
    ) -> Examples:
        bank = embedding_bank(
            clip,
            data,
            indices,
            self.attack(),
            copies=self.bank_copies,
            clean=self.bank_clean,
            seed=seed,
            folder=folder,
            progress=progress,
            processes=processes,
        )
        return bank_examples(bank, data.targets[indices], clip)

    def bill(self, pictures: int) -> Cost:
        made = bank_cost(self.attack(), copies=self.bank_copies, clean=self.bank_clean)
        return Cost(pictures * made.forward, pictures * made.backward)

    def attack_facts(self) -> dict[str, object] | None:
        return {"score": "embedding_shift", **self.attack().model_dump(mode="json")}
