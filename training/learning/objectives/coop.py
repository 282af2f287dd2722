"""CoOp (Zhou et al. 2022, arXiv 2109.01134), as the control of AdvPT: the same tuning on a bank of radius
zero, which is the clean embeddings.

Deviations: no augmentation (the bank has one embedding a picture), AdvPT's 32 vectors and schedule.
"""

from pathlib import Path
from typing import Literal

from torch import Tensor

from robustclip.models.clip import Clip
from robustclip.types import Cost, Progress
from training.data.labelled import LabelledImages
from training.learning.objectives.base import Examples
from training.learning.objectives.text import TextTuning, bank_examples
from training.processes import ALONE, Processes
from training.threats.bank import bank_cost, embedding_bank, feature_attack


class CoOp(TextTuning):
    """Tune a text context on clean embeddings."""

    kind: Literal["coop"] = "coop"

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
        attack = feature_attack(0.0, steps=1)
        bank = embedding_bank(
            clip,
            data,
            indices,
            attack,
            copies=1,
            clean=False,
            seed=seed,
            folder=folder,
            progress=progress,
            processes=processes,
        )
        return bank_examples(bank, data.targets[indices], clip)

    def bill(self, pictures: int) -> Cost:
        return Cost(forward=pictures * bank_cost(feature_attack(0.0, steps=1), copies=1, clean=False).forward)

    def attack_facts(self) -> dict[str, object] | None:
        return None
