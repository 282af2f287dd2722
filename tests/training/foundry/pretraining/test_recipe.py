"""Which checkpoints serve which recipes."""

from training.foundry.pretraining.recipe import PretrainingRecipe


def test_a_checkpoint_serves_whatever_differs_in_later_phases_only() -> None:
    other = PretrainingRecipe(broad_samples=1, joint_rate=1e-4)
    recorded = PretrainingRecipe().model_dump()
    assert other.changed(recorded, "frozen") == []
    assert other.changed(recorded, "joint") == ["joint_rate"]
    assert sorted(other.changed(recorded, "broad")) == ["broad_samples", "joint_rate"]


def test_checkpoints_that_name_no_precision_were_made_in_bf16() -> None:
    recorded = PretrainingRecipe().model_dump(exclude={"precision"})
    assert PretrainingRecipe().changed(recorded, "broad") == []
    assert PretrainingRecipe(precision="float32").changed(recorded, "broad") == ["precision"]
