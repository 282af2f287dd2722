import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import DataRefused
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Cost
from training.data.sampling import seeded
from training.learning.objectives import AdvPT
from training.learning.objectives.base import Batch, Examples, Objective, Signs, Step, Task
from training.learning.tuning.collapse import CollapseWatch, TrainingCollapsed, TrainingDiverged
from training.learning.tuning.loop import Fitted, fit

LABELS = ("cat", "fire salamander", "a rather long name of a thing")


def examples(count: int = 20, copies: int = 1) -> Examples:
    rows = torch.randn(count, copies, 32, generator=torch.Generator().manual_seed(0))
    return Examples(torch.arange(count) % 3, lambda chosen: rows[chosen], Cost(), 0.0)


def learn(
    clip: Clip, checkpoint: Path, objective: Objective, given: Examples | None = None, seed: int = 3
) -> Fitted:
    return fit(
        clip,
        objective,
        given or examples(),
        LABELS,
        seed=seed,
        checkpoint=checkpoint,
        progress=lambda done, total, what: None,
    )


def transcribed_text_features(clip: Clip, vectors: Tensor) -> Tensor:
    """Vectors between [SOS] and the label, through open_clip's own modules."""
    model, rows = clip.model, []
    for label in LABELS:
        tokens = clip.tokenize([f"{label}."])
        words = model.token_embedding(tokens)
        sequence = (
            torch.cat([words[:, :1], vectors, words[:, 1:]], dim=1)[:, :77] + model.positional_embedding
        )
        hidden = model.ln_final(model.transformer(sequence, attn_mask=model.attn_mask))
        rows.append(hidden[0, int(tokens.argmax()) + vectors.shape[1]] @ model.text_projection)
    return F.normalize(torch.stack(rows), dim=-1)


def test_tuning_is_the_methods_specification(tiny: Clip, tmp_path: Path) -> None:
    objective, given = AdvPT(vectors=4, epochs=3, batch=8), examples()
    vectors = objective.new_parameters(tiny, LABELS, 3)["text"]
    velocity = torch.zeros_like(vectors)
    for epoch in range(3):
        for number, rows in enumerate(torch.randperm(20, generator=seeded(3, f"epoch-{epoch}")).split(8)):
            done = (3 * epoch + number) / 9
            rate = 0.001 * (1 + math.cos(math.pi * (done - 0.05) / 0.95)) if done else 1e-5
            vectors.requires_grad_()
            features = F.normalize(given.take(rows)[:, 0], dim=-1)
            loss = F.cross_entropy(
                100 * features @ transcribed_text_features(tiny, vectors).T, given.targets[rows]
            )
            (gradient,) = torch.autograd.grad(loss, vectors)
            velocity = 0.9 * velocity + gradient + 5e-4 * vectors.detach()
            vectors = vectors.detach() - rate * velocity
    found = learn(tiny, tmp_path / "run.safetensors", objective, given).prompts.text
    torch.testing.assert_close(found, vectors, atol=1e-5, rtol=1e-3)


def test_a_parameter_has_its_share_of_the_rate(tiny: Clip, tmp_path: Path) -> None:
    class Still(AdvPT):
        def share_of_rate(self, parameter: str) -> float:
            return 0.0 if parameter == "text" else 1.0

    objective = Still(vectors=4, epochs=2, batch=8)
    torch.testing.assert_close(
        learn(tiny, tmp_path / "run.safetensors", objective).prompts.text,
        objective.new_parameters(tiny, LABELS, 3)["text"],
    )


def test_a_finished_run_is_only_read(tiny: Clip, tmp_path: Path) -> None:
    objective = AdvPT(vectors=4, epochs=2, batch=8)
    first, again = (learn(tiny, tmp_path / "run.safetensors", objective) for _ in range(2))
    assert (first.text_passes, again.text_passes) == (6, 0)
    assert first.history == again.history
    assert first.prompts.digest() == again.prompts.digest()


def test_learning_leaves_the_clip_and_the_global_generator_alone(tiny: Clip, tmp_path: Path) -> None:
    before, weights = torch.get_rng_state(), [tensor.clone() for tensor in tiny.model.parameters()]
    fitted = learn(tiny, tmp_path / "run.safetensors", AdvPT(vectors=4, epochs=2, batch=8))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(old, new) for old, new in zip(weights, tiny.model.parameters(), strict=True))
    assert fitted.prompts.text is not None
    assert not fitted.prompts.text.requires_grad


def test_another_seed_learns_other_prompts(tiny: Clip, tmp_path: Path) -> None:
    objective = AdvPT(vectors=4, epochs=1, batch=8)
    first, second = (learn(tiny, tmp_path / f"{seed}.safetensors", objective, seed=seed) for seed in (0, 1))
    assert first.prompts.digest() != second.prompts.digest()


def test_a_loss_that_is_no_number_stops_with_the_last_good_epoch_kept(tiny: Clip, tmp_path: Path) -> None:
    objective = AdvPT(vectors=4, epochs=2, batch=8)
    learn(tiny, tmp_path / "run.safetensors", objective.model_copy(update={"epochs": 1}))
    kept = (tmp_path / "run.safetensors").read_bytes()
    spoiled = torch.full((20, 1, 32), torch.nan)
    with pytest.raises(TrainingDiverged, match="epoch 2 is not finite: cross_entropy nan"):
        learn(
            tiny,
            tmp_path / "run.safetensors",
            objective,
            Examples(torch.arange(20) % 3, lambda chosen: spoiled[chosen], Cost(), 0.0),
        )
    assert (tmp_path / "run.safetensors").read_bytes() == kept


@pytest.mark.parametrize("spoil", [lambda data: b"", lambda data: data[:100], lambda data: b"\x00" * 64])
def test_a_damaged_checkpoint_is_refused(tiny: Clip, tmp_path: Path, spoil: object) -> None:
    checkpoint = tmp_path / "run.safetensors"
    learn(tiny, checkpoint, AdvPT(vectors=4, epochs=1, batch=8))
    assert callable(spoil)
    checkpoint.write_bytes(spoil(checkpoint.read_bytes()))
    with pytest.raises(DataRefused, match="--fresh"):
        learn(tiny, checkpoint, AdvPT(vectors=4, epochs=2, batch=8))


def test_a_checkpoint_of_other_prompts_is_refused(tiny: Clip, tmp_path: Path) -> None:
    learn(tiny, tmp_path / "run.safetensors", AdvPT(vectors=4, epochs=1, batch=8))
    with pytest.raises(DataRefused, match="no checkpoint of this run"):
        learn(tiny, tmp_path / "run.safetensors", AdvPT(vectors=6, epochs=2, batch=8))


class Fragile(Objective):
    """Collapses after its second epoch for as long as its consistency term is stronger than `strength`."""

    consistency: float = 1.0
    strength: float = 0.5

    @property
    def kind(self) -> str:
        return "fragile"

    def new_parameters(self, clip: Clip, labels: tuple[str, ...], seed: int) -> dict[str, Tensor]:
        return {"text": torch.ones(1, 2, clip.text_width)}

    def loss(self, task: Task, parameters: Mapping[str, Tensor], batch: Batch) -> Step:
        collapsed = batch.epoch >= 2 and self.consistency > self.strength
        signs = Signs(0.0, math.log(3)) if collapsed else Signs(1.0, 0.1)
        return Step(
            {"decay": self.consistency * parameters["text"].square().mean()},
            None,
            None,
            signs,
            notes={"draw": float(batch.seeds[0] % 997)},
        )

    def weakened(self) -> Self | None:
        return self.model_copy(update={"consistency": self.consistency / 2})


def test_a_collapsed_run_goes_back_halves_its_consistency_and_draws_anew(tiny: Clip, tmp_path: Path) -> None:
    said: list[str] = []
    objective = Fragile(epochs=60, batch=20)
    fitted = fit(
        tiny,
        objective,
        examples(),
        LABELS,
        seed=3,
        checkpoint=tmp_path / "run",
        progress=lambda done, total, what: said.append(what),
    )
    assert (fitted.restarts, len(fitted.history)) == (1, 60)
    assert any("restart 1 from epoch 2" in what for what in said)
    strong = fit(
        tiny,
        Fragile(epochs=60, batch=20, strength=1.0),
        examples(),
        LABELS,
        seed=3,
        checkpoint=tmp_path / "strong",
        progress=lambda *_: None,
    )
    assert strong.history[:2] == fitted.history[:2]
    assert strong.history[2].notes != fitted.history[2].notes  # another draw
    assert fitted.history[2].loss < 0.51 * strong.history[2].loss


def test_a_run_that_collapses_again_and_again_fails_loudly(tiny: Clip, tmp_path: Path) -> None:
    with pytest.raises(TrainingCollapsed, match="the same guess"):
        learn(tiny, tmp_path / "run", Fragile(epochs=60, batch=20, strength=0.0))


def test_collapse_is_fifty_steps_in_a_row() -> None:
    watch = CollapseWatch(4)
    guess, fine = Signs(1e-3, math.log(4)), Signs(1e-3, 1.0)
    for _ in range(49):
        watch.observe(guess)
    watch.observe(fine)
    for _ in range(49):
        watch.observe(guess)
    with pytest.raises(TrainingCollapsed):
        watch.observe(guess)


def test_who_has_just_begun_may_guess(tiny: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Taught(Fragile):
        def phases(self) -> tuple[int, ...]:
            return (3, self.epochs)

        def loss(self, task: Task, parameters: Mapping[str, Tensor], batch: Batch) -> Step:
            return super().loss(task, parameters, batch)._replace(signs=Signs(0.0, batch.epoch))

    told: list[int] = []
    monkeypatch.setattr(CollapseWatch, "observe", lambda self, signs: told.append(int(signs.cross_entropy)))
    learn(tiny, tmp_path / "run", Taught(epochs=2, batch=20))
    assert sorted(set(told)) == [1, 2, 4]


def test_the_average_lags_behind_the_prompts(tiny: Clip, tmp_path: Path) -> None:
    fitted = learn(
        tiny, tmp_path / "run", Fragile(epochs=20, batch=20, strength=1.0, average=0.99, learning_rate=1.0)
    )
    assert fitted.averaged is not None
    assert fitted.averaged.text is not None
    assert fitted.prompts.text is not None
    assert 1 > float(fitted.averaged.text.mean()) > float(fitted.prompts.text.mean())
    assert learn(tiny, tmp_path / "other", AdvPT(vectors=4, epochs=1)).averaged is None


def test_progress_tells_both_accuracies(tiny: Clip, tmp_path: Path) -> None:
    class Both(Fragile):
        def loss(self, task: Task, parameters: Mapping[str, Tensor], batch: Batch) -> Step:
            return (
                super()
                .loss(task, parameters, batch)
                ._replace(accuracy=torch.tensor(0.75), robust=torch.tensor(0.5))
            )

    said: list[str] = []
    fit(
        tiny,
        Both(epochs=1),
        examples(),
        LABELS,
        seed=0,
        checkpoint=tmp_path / "run",
        progress=lambda done, total, what: said.append(what),
    )
    assert said == ["tuning: loss 1.000, accuracy 75.0%, attacked 50.0%"]


def test_prompts_are_exported_off_any_graph(tiny: Clip, tmp_path: Path) -> None:
    prompts: Prompts = learn(tiny, tmp_path / "run", AdvPT(vectors=4, epochs=1)).prompts
    assert prompts.text is not None
    assert not prompts.text.requires_grad
