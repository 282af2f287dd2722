import pytest
from pydantic import ValidationError

from training.learning.objectives import OBJECTIVES, AdvPT, CoOp


def test_the_defaults_are_the_papers_preset() -> None:
    preset = AdvPT()
    assert (preset.vectors, preset.words, preset.class_specific) == (32, "", False)
    assert (preset.epochs, preset.batch, preset.learning_rate) == (100, 32, 0.002)
    assert (preset.bank_copies, preset.bank_clean) == (1, False)
    attack = preset.attack()
    assert (attack.ball.radius, attack.steps) == (8 / 255, 10)
    assert attack.step == pytest.approx(1 / 255)
    assert (attack.starts, attack.keep, attack.stop) == (("one_sided",), "last", "never")


def test_the_switches_of_the_bank_reach_the_attack() -> None:
    attack = AdvPT.model_validate(
        {"eps": "1/255", "steps": 5, "step": "0.5/255", "start": "symmetric"}
    ).attack()
    assert (attack.ball.radius, attack.steps, attack.step, attack.starts) == (
        1 / 255,
        5,
        0.5 / 255,
        ("random",),
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": -1},
        {"eps": "nan"},
        {"vectors": 0},
        {"bank_copies": 0},
        {"epochs": 0},
        {"steps": 0},
        {"step": 0},
        {"epsilon": 1},
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AdvPT.model_validate(wrong)


def test_the_manifest_learns_what_training_attacked_with() -> None:
    facts = AdvPT(eps=1 / 255).attack_facts()
    assert facts is not None
    assert facts["kind"] == "pgd"
    assert facts["score"] == "embedding_shift"
    assert CoOp().attack_facts() is None


def test_the_control_is_tuned_as_advpt_is() -> None:
    shared = [name for name in AdvPT.model_fields if name in CoOp.model_fields and name != "kind"]
    assert shared == ["epochs", "batch", "learning_rate", "average", "vectors", "words", "class_specific"]
    assert all(getattr(AdvPT(), name) == getattr(CoOp(), name) for name in shared)
    assert set(OBJECTIVES) >= {"coop", "advpt", "advpt_plus", "apt", "fap", "capt", "apd"}
