"""What a run says of the set that it publishes."""

import pytest
import torch

from prompts_store.manifest import Result
from training.learning.tuning.run import no_better_than_a_guess


@pytest.mark.parametrize(
    ("threat", "n", "accuracy", "guesses"),
    [
        ("clean", 100, 0.40, True),
        ("clean", 100, 0.41, False),
        ("clean", 63, 0.0, False),
        ("T2", 100, 0.0, False),
    ],
)
def test_a_set_that_one_answer_for_all_pictures_would_equal_is_called_a_guess(
    threat: str, n: int, accuracy: float, guesses: bool
) -> None:
    targets = torch.tensor([0] * 40 + [1] * 30 + [2] * 30)
    result = Result(
        data="toys",
        split="validation",
        threat=threat,
        eps="0",
        n=n,
        accuracy=accuracy,
        low=0.0,
        high=1.0,
        attack=None,
        seed=0,
    )
    assert no_better_than_a_guess([result], targets) == guesses
