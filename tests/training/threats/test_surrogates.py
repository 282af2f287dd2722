from pathlib import Path

import torch
from toys import drawn_linear, gratings

from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import Linf
from training.data.folders import load_data
from training.threats.base import Effort, measure_at, threat_level
from training.threats.judging import Pictures, victim_of
from training.threats.t0b import Diverse, climb

BALL = Linf(radius=16 / 255)


def silent(done: int, total: int, what: str) -> None:
    pass


def test_the_climb_stays_in_the_ball_and_fools_the_network_it_climbs() -> None:
    toy, (pixels, _) = drawn_linear(), gratings(6, seed=0)
    targets = toy(pixels, draw_seeds(0, 6)).argmax(dim=1)
    moved, cost = climb(label_score("cross_entropy", toy, targets), pixels, draw_seeds(0, 6), BALL)
    assert (moved - pixels).abs().max() <= BALL.radius + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (toy(moved, draw_seeds(0, 6)).argmax(dim=1) != targets).sum() >= 5
    assert cost.backward == 6 * 40


def test_a_row_does_not_depend_on_its_mates() -> None:
    toy, (pixels, targets) = drawn_linear(), gratings(5, seed=1)
    seeds = draw_seeds(3, 5)
    whole, _ = climb(Diverse(label_score("cross_entropy", toy, targets)), pixels, seeds, BALL)
    alone, _ = climb(Diverse(label_score("cross_entropy", toy, targets[3:4])), pixels[3:4], seeds[3:4], BALL)
    assert torch.allclose(whole[3:4], alone, atol=1e-6)


def test_some_rows_are_seen_smaller_and_their_gradient_is_that_of_what_was_seen() -> None:
    toy, (pixels, targets) = drawn_linear(), gratings(64, seed=2)
    plain = label_score("cross_entropy", toy, targets)
    seeds = draw_seeds(0, 64)
    as_they_are, diverse = plain(pixels, seeds, grad=True), Diverse(plain)(pixels, seeds, grad=True)
    changed = diverse.value != as_they_are.value
    assert 0.1 < changed.float().mean() < 0.5
    assert diverse.grad is not None
    assert as_they_are.grad is not None
    assert torch.equal(diverse.grad[~changed], as_they_are.grad[~changed])
    step = 1e-3 * diverse.grad.sign()
    ahead, behind = (Diverse(plain)(pixels + sign * step, seeds, grad=False).value for sign in (1, -1))
    assert torch.allclose(
        (ahead - behind) / 2, (diverse.grad * step).flatten(1).sum(dim=1), rtol=0.02, atol=1e-4
    )


def test_a_tower_that_is_its_own_surrogate_is_fooled_by_what_it_was_attacked_with(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    data = load_data(picture_folder, "test")
    pictures = Pictures(data, torch.arange(0, 18, 3), 0, tmp_path)
    victim, effort = victim_of(tiny, Prompts(), pictures), Effort(eps=(8 / 255,), surrogates=("tiny",))
    (within,) = threat_level("T0b").threat_sets(effort)
    found = measure_at("T0b", victim, within, effort, silent)
    right = int(
        (
            victim.classifier(data.pixels(pictures.indices, 32), draw_seeds(0, 6)).argmax(dim=1)
            == data.targets[pictures.indices]
        ).sum()
    )
    assert int(found.measured.correct.sum()) < right
    assert found.attack is not None
    assert (found.attack["surrogates"], found.attack["scores"], found.attack["momentum"]) == (
        ["tiny"],
        ["embedding_shift", "cross_entropy"],
        0.9,
    )
    parts = len(list(tmp_path.glob("*/*.safetensors")))
    assert parts == 2
    again = measure_at("T0b", victim, within, effort, silent)
    assert torch.equal(again.measured.correct, found.measured.correct)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == parts
