"""Threat levels about a defense: one that does not know it, one that only asks it."""

import torch
from tuning import silent

from robustclip.defenses import parse_defenses
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Cost
from training.threats.base import Effort, measure_at, threat_level
from training.threats.judging import AtLevel, Pictures, victim_of

EPS = 4 / 255


def at(
    level: str,
    clip: Clip,
    pictures: Pictures,
    defense: str,
    *,
    prompts: Prompts | None = None,
    queries: int = 1,
    draws: int = 2,
) -> AtLevel:
    victim = victim_of(clip, prompts or Prompts(), pictures, parse_defenses(defense))
    effort = Effort(eps=(EPS,), queries=queries, draws=draws)
    (within,) = threat_level(level).threat_sets(effort)
    return measure_at(level, victim, within, effort, silent)


def test_static_pictures_are_made_once_for_prompts_and_judged_behind_each_defense(
    tiny: Clip, pictures: Pictures
) -> None:
    first = at("static", tiny, pictures, "bit_depth:6")
    made = {path: path.stat().st_mtime_ns for path in pictures.cache.glob("*/*.safetensors")}
    second = at("static", tiny, pictures, "low_pass:0.05")
    assert {path: path.stat().st_mtime_ns for path in pictures.cache.glob("*/*.safetensors")} == made
    assert first.attack == second.attack
    assert first.attack is not None
    assert (first.attack["steps"], first.attack["stop"], first.attack["defense"]) == (100, "never", "none")
    assert first.measured.cost.backward == second.measured.cost.backward == 18 * 100
    at("static", tiny, pictures, "none", prompts=Prompts(templates=("art of the {}.",)))
    assert len([*pictures.cache.glob("*/*.safetensors")]) == len(made) + 1


def test_without_a_defense_static_breaks_what_t2_breaks(tiny: Clip, pictures: Pictures) -> None:
    full = at("T2", tiny, pictures, "none").measured.correct
    assert at("static", tiny, pictures, "none").measured.correct.sum() <= full.sum() + 1


def test_the_black_box_breaks_without_a_gradient_and_stops_where_it_broke(
    tiny: Clip, pictures: Pictures
) -> None:
    clean = at("clean", tiny, pictures, "bit_depth:6").measured.correct
    found = at("black-box", tiny, pictures, "bit_depth:6", queries=40)
    assert found.attack is not None
    assert (found.attack["kind"], found.attack["queries"], found.attack["stop"], found.attack["draws"]) == (
        "square",
        40,
        "broken",
        1,
    )
    assert not (found.measured.correct & ~clean).any()
    assert found.measured.correct.sum() < clean.sum()
    assert found.measured.cost.backward == 0
    assert found.measured.cost.forward < 18 + 2 * int(clean.sum()) + 42 * int(clean.sum())


def test_a_randomized_defense_is_asked_on_equal_draws_and_never_left_for_a_lucky_one(
    tiny: Clip, pictures: Pictures
) -> None:
    few = Pictures(pictures.data, torch.arange(4), 0, pictures.cache)
    clean = at("clean", tiny, few, "resize_pad").measured.correct
    found = at("black-box", tiny, few, "resize_pad", queries=5, draws=3)
    assert found.attack is not None
    assert (found.attack["redraw"], found.attack["stop"], found.attack["draws"]) == (True, "never", 3)
    standing = int(clean.sum())
    assert found.measured.cost == Cost(4 * 10 + standing * (2 * 10 + 3 * (2 + 2 * 5)))
