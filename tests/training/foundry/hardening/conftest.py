"""A few small pictures with labels, for towers of 32 pixels."""

import numpy as np
import pytest
import torch

from training.foundry.corpus import Corpus, Names, pixels_of


@pytest.fixture(scope="session")
def toys() -> Corpus:
    """Two data sets that share a name; 60 pictures, twelve kept back."""
    generator = np.random.default_rng(0)
    names = Names(
        ("cat", "dog", "fish", "lamp", "toy car"),
        {"animals": torch.tensor([0, 1, 2]), "things": torch.tensor([3, 4, 2])},
    )
    source = torch.arange(60) % 2
    chosen = torch.arange(60) // 2 % 3
    return Corpus(
        names=names,
        sets=("animals", "things"),
        pixels=pixels_of(generator.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)),
        name=torch.where(source == 0, names.members["animals"][chosen], names.members["things"][chosen]),
        source=source,
        validation=torch.arange(60) % 10 < 2,
        shares=(0.5, 0.5),
    )
