"""The checks of a run: the same pictures every time, stronger attacks leave less."""

import torch

from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from training.foundry.corpus import Corpus
from training.foundry.hardening.attack import Strength
from training.foundry.hardening.check import Checker
from training.foundry.hardening.losses import TextHead
from training.foundry.hardening.tower import ImageTower


def test_clean_accuracy_is_among_the_names_of_the_own_data_set(tiny: Clip, toys: Corpus) -> None:
    checker, tower = prepared(tiny, toys)
    rows = torch.nonzero(toys.validation).squeeze(1)
    with torch.no_grad():
        logits = checker.head(tower(toys.pixels(rows)))
    for index, name in enumerate(toys.sets):
        members, own = toys.names.members[name], toys.source[rows] == index
        hits = members[logits[own][:, members].argmax(dim=1)] == toys.name[rows][own]
        assert checker.clean(tower)[name] == round(100 * hits.float().mean().item(), 1)


def test_a_longer_attack_leaves_less_and_the_same_each_time(tiny: Clip, toys: Corpus) -> None:
    checker, tower = prepared(tiny, toys)
    nothing, weak, strong = checker.robust(
        tower, Strength.of(1e-9, 1), Strength.of(1 / 255, 1), Strength.of(2 / 255, 20), pictures=10
    )
    assert nothing >= weak >= strong
    assert nothing > strong
    assert [strong] == checker.robust(tower, Strength.of(2 / 255, 20), pictures=10)


def prepared(clip: Clip, toys: Corpus) -> tuple[Checker, ImageTower]:
    with torch.no_grad():
        head = TextHead(text_weights(clip, Prompts(), toys.names.texts), clip.logit_scale)
    tower = ImageTower(clip, bf16=False)
    return Checker(toys, head, tower, pictures=10, seed=0), tower
