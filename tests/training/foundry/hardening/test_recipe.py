"""Recipes: the papers' settings, ours, and what they refuse."""

import pytest

from robustclip.errors import InvalidInput
from training.foundry.hardening.attack import Strength
from training.foundry.hardening.losses import DISTILLED, FARE, PMG_AFT, TECOA
from training.foundry.hardening.recipe import HardeningRecipe, read_recipe


def test_presets_go_by_their_names() -> None:
    assert [HardeningRecipe(objective=name).preset for name in ("tecoa", "fare", "pmg-aft", "distilled")] == [
        TECOA,
        FARE,
        PMG_AFT,
        DISTILLED,
    ]


def test_the_clean_weight_scales_both_halves_and_zero_attacks_every_picture() -> None:
    preset = HardeningRecipe(clean=1.0).preset
    assert (preset.clean_label, preset.clean_teacher) == (0.5, 0.5)
    assert HardeningRecipe(clean=1.0).untouched_a_block == 4
    assert HardeningRecipe(clean=0.0).untouched_a_block == HardeningRecipe().untouched_a_block == 0
    assert HardeningRecipe(objective="tecoa").untouched_a_block == 0


def test_a_papers_recipe_is_the_papers_and_gives_way_to_what_is_asked() -> None:
    fare = read_recipe("papers", {"objective": "fare", "eps": "2/255"})
    assert (fare.eps, fare.steps, fare.step, fare.rate, fare.weight_decay) == (
        2 / 255,
        10,
        1 / 255,
        1e-5,
        1e-4,
    )
    assert fare.samples == 20_000 * fare.batch == 20_000 * 128
    pmg_aft = read_recipe("papers", {"objective": "pmg-aft"})
    assert (pmg_aft.eps, pmg_aft.steps, pmg_aft.rate, pmg_aft.batch) == (1 / 255, 2, 5e-5, 256)


def test_a_step_of_its_own_replaces_the_usual_one() -> None:
    assert HardeningRecipe(step=1 / 255).strength == Strength(2.5 / 255, 1, 1 / 255)
    assert HardeningRecipe(eps=2 / 255, steps=2).strength == Strength.of(2 / 255, 2)


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"eps": "0"}, "--eps", "greater than 0"),
        ({"eps": "2 levels"}, "--eps", "4/255"),
        ({"batch": "100"}, "--batch", "multiple of 16"),
        ({"objective": "fair"}, "--objective", "tecoa"),
        ({"check_samples": "0"}, "--check-samples", "greater than"),
        ({"objective": "fare", "clean": "0.5"}, None, "only distilled has a clean weight"),
    ],
)
def test_what_a_recipe_can_not_mean_is_refused_by_option(
    given: dict[str, str], field: str | None, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as refusal:
        read_recipe("cpu", given)
    assert refusal.value.field == field


def test_no_paper_is_distilled() -> None:
    with pytest.raises(InvalidInput, match="no paper"):
        read_recipe("papers", {})
