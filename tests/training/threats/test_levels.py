from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tuning import silent

from robustclip.defenses import AnyDefense, parse_defenses
from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Cost, Progress
from training.data.folders import load_data
from training.threats.base import Effort, Work, measure_at, threat_level
from training.threats.judging import AtLevel, Pictures, victim_of

EPS = 4 / 255
WITHIN_T3 = threat_level("T3").parts


def at(
    level: str,
    clip: Clip,
    pictures: Pictures,
    *,
    eps: float = EPS,
    defense: str = "none",
    chain: tuple[AnyDefense, ...] | None = None,
    template: str = "a photo of a {}.",
    visual: Tensor | None = None,
    restarts: int = 1,
    known: dict[str, AtLevel] | None = None,
    parts: Path | None = None,
    progress: Progress = silent,
) -> AtLevel:
    links = parse_defenses(defense) if chain is None else chain
    victim = victim_of(clip, Prompts(visual=visual, templates=(template,)), pictures, links)
    effort = Effort(eps=(eps,), strength="quick", restarts=restarts)
    (within,) = threat_level(level).threat_sets(effort)
    if known is None:
        return measure_at(level, victim, within, effort, progress)
    folder = pictures.cache.parent / "alone" if parts is None else parts
    return threat_level(level).measure(victim, within, effort, Work(progress, folder, known))


def parts(pictures: Pictures) -> dict[Path, int]:
    """The cached parts and when they were written."""
    return {path: path.stat().st_mtime_ns for path in pictures.cache.glob("*/*.safetensors")}


def test_a_stronger_attacker_never_leaves_more_than_a_clean_picture_has(
    tiny: Clip, pictures: Pictures
) -> None:
    clean, blind, full = (at(level, tiny, pictures).measured.correct for level in ("clean", "T0", "T2"))
    assert clean.any()
    assert not (blind & ~clean).any()
    assert not (full & ~clean).any()
    assert full.sum() <= blind.sum()


def test_clean_pictures_have_no_attack_and_cost_one_pass(tiny: Clip, pictures: Pictures) -> None:
    found = at("clean", tiny, pictures)
    assert found.attack is None
    assert found.measured.cost == Cost(forward=18)


def test_t0_is_the_feature_attack_made_once_for_all(tiny: Clip, pictures: Pictures) -> None:
    first = at("T0", tiny, pictures)
    made = parts(pictures)
    other = at("T0", tiny, pictures, template="art of the {}.")
    defended = at("T0", tiny, pictures, defense="bit_depth:3")
    assert parts(pictures) == made
    assert first.attack == other.attack == defended.attack
    assert first.attack is not None
    assert (first.attack["steps"], first.attack["starts"], first.attack["score"]) == (
        40,
        ["one_sided"],
        "embedding_shift",
    )
    assert first.attack["step"] == pytest.approx(1.25 * EPS / 40)
    assert first.measured.cost.backward == 18 * 40


def test_t2_is_cross_entropy_over_a_hundred_steps_of_a_quarter_radius(tiny: Clip, pictures: Pictures) -> None:
    attack = at("T2", tiny, pictures).attack
    assert attack is not None
    assert (attack["steps"], attack["starts"], attack["keep"], attack["score"], attack["draws"]) == (
        100,
        ["random"],
        "best",
        "cross_entropy",
        1,
    )
    assert attack["step"] == pytest.approx(EPS / 4)


def test_each_restart_of_t2_costs_and_a_picture_falls_to_any(tiny: Clip, pictures: Pictures) -> None:
    once, thrice = (at("T2", tiny, pictures, eps=1e-7, restarts=restarts).measured for restarts in (1, 3))
    assert thrice.cost.backward == 3 * once.cost.backward
    assert (
        at("T2", tiny, pictures, restarts=3).measured.correct.sum()
        <= at("T2", tiny, pictures).measured.correct.sum()
    )


def test_t2_bills_every_step_of_every_picture_that_stands_and_none_of_one_that_fell(
    tiny: Clip, pictures: Pictures
) -> None:
    harmless = at("T2", tiny, pictures, eps=1e-7).measured
    standing = int(harmless.correct.sum())
    assert standing == at("clean", tiny, pictures).measured.correct.sum() > 0
    judged = 18 + 2 * standing  # untouched, attacked, and rounded to 8 bits
    assert harmless.cost == Cost(forward=judged + 101 * standing, backward=100 * standing)
    harmful = at("T2", tiny, pictures).measured
    fallen = standing - int(harmful.correct.sum())
    assert fallen > 0
    assert 100 * (standing - fallen) < harmful.cost.backward < 100 * standing
    assert standing - fallen <= harmful.cost.forward - judged - harmful.cost.backward < standing, (
        "who never fell takes a last look"
    )


def test_a_randomized_defense_is_attacked_through_many_draws_and_judged_by_fresh_ones(
    tiny: Clip, picture_folder: Path, tmp_path: Path
) -> None:
    data = load_data(picture_folder, "test")
    pictures = Pictures(data, torch.arange(18), 0, tmp_path)
    clean = at("clean", tiny, pictures, defense="resize_pad")
    assert clean.measured.cost == Cost(forward=18 * 10)
    few = Pictures(data, clean.measured.correct.nonzero().flatten()[:1], 0, tmp_path)
    found = at("T2", tiny, few, defense="resize_pad")
    assert found.attack is not None
    assert (found.attack["draws"], found.attack["stop"]) == (20, "never")
    assert found.measured.cost == Cost(forward=3 * 10 + 20 * 101, backward=20 * 100)


def test_a_smoothed_chain_is_judged_by_the_vote_that_is_served(tiny: Clip, pictures: Pictures) -> None:
    few = Pictures(pictures.data, torch.arange(6), 0, pictures.cache)
    rule = parse_defenses([{"kind": "smoothing", "sigma": 4.0, "votes": 60}])  # noise alone: a coin's toss
    clean = at("clean", tiny, few, chain=rule).measured
    assert clean.abstained is not None
    assert clean.cost == Cost(forward=6 * 60)
    assert not (clean.correct & clean.abstained).any()
    sure = at(
        "clean", tiny, few, chain=parse_defenses([{"kind": "smoothing", "sigma": 0.001, "votes": 60}])
    ).measured
    assert sure.abstained is not None
    assert not sure.abstained.any()
    assert torch.equal(sure.correct, at("clean", tiny, few).measured.correct)


def test_what_is_found_does_not_depend_on_batches_or_on_the_other_pictures(
    tiny: Clip, pictures: Pictures
) -> None:
    whole = at("T2", tiny, pictures).measured.correct
    some = Pictures(pictures.data, torch.tensor([3, 8, 16]), 0, pictures.cache, batch=2)
    assert torch.equal(at("T2", tiny, some).measured.correct, whole[[3, 8, 16]])


def test_t1_is_made_once_for_an_image_tower_and_knows_its_visual_prompts_but_neither_text_nor_defense(
    tiny: Clip, pictures: Pictures
) -> None:
    assert tiny.visual_width is not None
    first = at("T1", tiny, pictures)
    made = parts(pictures)
    assert first.attack is not None
    assert (first.attack["steps"], first.attack["stop"], first.attack["templates"]) == (
        100,
        "never",
        ["a photo of a {}."],
    )
    assert first.measured.cost.backward == 18 * 100
    assert (
        at("T1", tiny, pictures, template="art of the {}.").attack
        == at("T1", tiny, pictures, defense="bit_depth:3").attack
        == first.attack
    )
    assert parts(pictures) == made
    at(
        "T1",
        tiny,
        pictures,
        visual=torch.randn(1, 2, tiny.visual_width, generator=torch.Generator().manual_seed(0)),
    )
    assert len(parts(pictures)) == len(made) + 1


def test_t1_spares_what_a_set_with_a_tower_of_its_own_gets_wrong_untouched(
    tiny: Clip, pictures: Pictures
) -> None:
    assert tiny.visual_width is not None
    own = torch.randn(1, 2, tiny.visual_width, generator=torch.Generator().manual_seed(0))
    clean = at("clean", tiny, pictures, visual=own).measured.correct
    found = at("T1", tiny, pictures, visual=own).measured
    assert 0 < clean.sum() < 18
    assert found.cost.backward == 100 * clean.sum()
    small = replace(pictures, cache=pictures.cache / "alone", indices=clean.nonzero().flatten())
    assert torch.equal(at("T1", tiny, small, visual=own).measured.correct, found.correct[clean])
    assert not (found.correct & ~clean).any()


def test_t1_fools_the_words_it_was_made_against_about_as_t2_does(tiny: Clip, pictures: Pictures) -> None:
    assert (
        at("T1", tiny, pictures).measured.correct.sum() <= at("T2", tiny, pictures).measured.correct.sum() + 1
    )


def test_t3_is_the_worst_of_all_and_of_the_ensemble_on_what_is_left(tiny: Clip, pictures: Pictures) -> None:
    eps = 0.3 / 255  # some pictures stand, some fall
    known = {level: at(level, tiny, pictures, eps=eps) for level in WITHIN_T3}
    found = at("T3", tiny, pictures, eps=eps, known=known)
    assert all(not (found.measured.correct & ~part.measured.correct).any() for part in known.values())
    assert all(
        not (found.measured.correct_8bit & ~part.measured.correct_8bit).any() for part in known.values()
    )
    standing = torch.stack([part.measured.correct for part in known.values()]).all(dim=0)
    assert found.fell_to is not None
    assert sum(found.fell_to.values()) == int(standing.sum()) - int(found.measured.correct.sum())
    assert list(found.fell_to) == ["noise", "margin-pgd", "square"]
    assert found.attack is not None
    assert (found.attack["kind"], found.attack["preset"], found.attack["worst_of"]) == (
        "ensemble",
        "quick",
        ["T0", "T1", "T2"],
    )
    assert found.measured.cost.charged > sum(part.measured.cost.charged for part in known.values())


def test_t3_measures_by_itself_what_it_is_not_told(tiny: Clip, pictures: Pictures) -> None:
    some = Pictures(pictures.data, torch.tensor([3, 8, 16]), 0, pictures.cache, batch=2)
    known = {level: at(level, tiny, some) for level in WITHIN_T3}
    alone, told = at("T3", tiny, some), at("T3", tiny, some, known=known)
    assert torch.equal(alone.measured.correct, told.measured.correct)
    assert (alone.attack, alone.fell_to, alone.measured.cost) == (
        told.attack,
        told.fell_to,
        told.measured.cost,
    )


def test_a_killed_t3_goes_on_after_its_last_whole_batch(
    tiny: Clip, pictures: Pictures, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    eps, several = 0.3 / 255, replace(pictures, batch=2)
    known = {level: at(level, tiny, several, eps=eps) for level in WITHIN_T3}

    def dies(done: int, total: int, what: str) -> None:
        if what == "T3" and done < total:
            raise KeyboardInterrupt

    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}

    with pytest.raises(KeyboardInterrupt):
        at("T3", tiny, several, eps=eps, known=known, parts=folder, progress=dies)
    before = kept()
    assert len(before) == 1
    whole = at("T3", tiny, several, eps=eps, known=known, parts=folder)
    undisturbed = at("T3", tiny, several, eps=eps, known=known)
    assert before.items() <= kept().items()
    assert torch.equal(whole.measured.correct, undisturbed.measured.correct)
    assert (whole.attack, whole.fell_to, whole.measured.cost) == (
        undisturbed.attack,
        undisturbed.fell_to,
        undisturbed.measured.cost,
    )


@pytest.mark.parametrize("level", ["T0", "T1", "T2", "T3"])
def test_an_attack_needs_a_radius(tiny: Clip, pictures: Pictures, level: str) -> None:
    with pytest.raises(InvalidInput, match="above 0"):
        at(level, tiny, pictures, eps=0.0)
