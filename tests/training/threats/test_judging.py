import torch

from robustclip.measuring import Measured
from robustclip.types import Cost
from training.threats.judging import worst_of


def test_the_worst_of_several_is_silent_where_one_is_and_none_is_fooled() -> None:
    def level(*said: str) -> Measured:
        right, silent = (torch.tensor([word == what for word in said]) for what in ("right", "silent"))
        return Measured(right, right, Cost(), 0.0, silent)

    worst = worst_of(
        [
            level("right", "silent", "wrong", "right", "silent"),
            level("right", "right", "silent", "wrong", "wrong"),
        ]
    )
    assert worst.abstained is not None
    assert (worst.correct.tolist(), worst.abstained.tolist()) == (
        [True, False, False, False, False],
        [False, True, False, False, False],
    )
