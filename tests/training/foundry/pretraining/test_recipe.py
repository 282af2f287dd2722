"""Which checkpoints serve which recipes."""

from training.foundry.pretraining.recipe import PretrainingRecipe


def test_a_checkpoint_serves_whatever_differs_in_later_phases_only() -> None:
    other = PretrainingRecipe(image_samples=256, text_rate=1e-4)
    recorded = PretrainingRecipe().model_dump()
    assert other.changed(recorded, "names") == []
    assert other.changed(recorded, "text") == ["text_rate"]
    assert sorted(other.changed(recorded, "image")) == ["image_samples", "text_rate"]
