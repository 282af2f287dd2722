"""Threat levels about a defense: one that does not know it, one that only asks it."""

import torch
from tuning import silent

from robustclip.defenses import bind_chain, parse_defenses
from robustclip.measuring import Jury
from robustclip.models.classifier import Defended, TorchImageEncoder, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Cost
from training.threats.defended import measure_black_box, measure_static
from training.threats.judging import AtLevel, Pictures, jury_of
from training.threats.levels import measure_level

EPS = 4 / 255


def behind(defense: str, clip: Clip, pictures: Pictures, prompts: Prompts) -> tuple[Defended, bool, Jury]:
    encoder = TorchImageEncoder(clip)
    bound = bind_chain(parse_defenses(defense), encoder)
    return (
        Defended(zero_shot(clip, prompts, pictures.data.labels, encoder=encoder), bound),
        bound.randomized,
        jury_of(None, randomized=bound.randomized),
    )


def static(clip: Clip, pictures: Pictures, defense: str, prompts: Prompts | None = None) -> AtLevel:
    prompts = prompts or Prompts()
    classifier, _, jury = behind(defense, clip, pictures, prompts)
    return measure_static(EPS, clip, prompts, classifier, pictures, jury=jury, progress=silent)


def black_box(clip: Clip, pictures: Pictures, defense: str, *, queries: int, draws: int = 2) -> AtLevel:
    classifier, randomized, jury = behind(defense, clip, pictures, Prompts())
    return measure_black_box(
        EPS,
        clip,
        classifier,
        pictures,
        randomized=randomized,
        jury=jury,
        progress=silent,
        queries=queries,
        draws=draws,
    )


def test_static_pictures_are_made_once_for_prompts_and_judged_behind_each_defense(
    tiny: Clip, pictures: Pictures
) -> None:
    first = static(tiny, pictures, "bit_depth:6")
    made = {path: path.stat().st_mtime_ns for path in pictures.cache.glob("*/*.safetensors")}
    second = static(tiny, pictures, "low_pass:0.05")
    assert {path: path.stat().st_mtime_ns for path in pictures.cache.glob("*/*.safetensors")} == made
    assert first.attack == second.attack
    assert first.attack is not None
    assert (first.attack["steps"], first.attack["stop"], first.attack["defense"]) == (100, "never", "none")
    assert first.measured.cost.backward == second.measured.cost.backward == 18 * 100
    static(tiny, pictures, "none", Prompts(templates=("art of the {}.",)))
    assert len([*pictures.cache.glob("*/*.safetensors")]) == len(made) + 1


def test_without_a_defense_static_breaks_what_t2_breaks(tiny: Clip, pictures: Pictures) -> None:
    classifier, _, _ = behind("none", tiny, pictures, Prompts())
    full = measure_level(
        "T2", EPS, tiny, classifier, pictures, randomized=False, progress=silent
    ).measured.correct
    assert static(tiny, pictures, "none").measured.correct.sum() <= full.sum() + 1


def test_the_black_box_breaks_without_a_gradient_and_stops_where_it_broke(
    tiny: Clip, pictures: Pictures
) -> None:
    classifier, _, _ = behind("bit_depth:6", tiny, pictures, Prompts())
    clean = measure_level(
        "clean", EPS, tiny, classifier, pictures, randomized=False, progress=silent
    ).measured.correct
    found = black_box(tiny, pictures, "bit_depth:6", queries=40)
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
    classifier, _, _ = behind("resize_pad", tiny, few, Prompts())
    clean = measure_level(
        "clean", EPS, tiny, classifier, few, randomized=True, progress=silent
    ).measured.correct
    found = black_box(tiny, few, "resize_pad", queries=5, draws=3)
    assert found.attack is not None
    assert (found.attack["redraw"], found.attack["stop"], found.attack["draws"]) == (True, "never", 3)
    standing = int(clean.sum())
    assert found.measured.cost == Cost(4 * 10 + standing * (2 * 10 + 3 * (2 + 2 * 5)))
