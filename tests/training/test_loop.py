import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from robustclip.clip import Clip
from robustclip.errors import DataRefused
from robustclip.types import Cost
from training.loop import Fitted, TrainingDiverged, cosine_after_warm_up, fit
from training.objectives import AdvPT
from training.objectives.base import Examples
from training.sampling import seeded

LABELS = ("cat", "fire salamander", "a rather long name of a thing")

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
import torch
from robustclip.clip import load_clip
from robustclip.types import Cost
from training.loop import fit
from training.objectives import AdvPT
from training.objectives.base import Examples

torch.set_num_threads(1)
rows = torch.randn(20, 1, 32, generator=torch.Generator().manual_seed(0))

def progress(done, total, what):
    if done == 56:  # 16 of 20 pictures of epoch 3
        os.kill(os.getpid(), signal.SIGKILL)

examples = Examples(torch.arange(20) % 3, lambda chosen: rows[chosen], Cost(), 0.0)
fit(load_clip("tiny"), AdvPT(vectors=4, epochs=5, batch=8), examples, LABELS, seed=3, checkpoint=Path(sys.argv[1]), progress=progress)
"""


def examples(count: int = 20, copies: int = 1) -> Examples:
    rows = torch.randn(count, copies, 32, generator=torch.Generator().manual_seed(0))
    return Examples(torch.arange(count) % 3, lambda chosen: rows[chosen], Cost(), 0.0)


def learn(clip: Clip, checkpoint: Path, objective: AdvPT, given: Examples | None = None, seed: int = 3) -> Fitted:
    return fit(clip, objective, given or examples(), LABELS, seed=seed, checkpoint=checkpoint, progress=lambda done, total, what: None)


@pytest.mark.parametrize(("rate", "epochs"), [(0.002, 100), (0.01, 10), (0.5, 2)])
def test_the_schedule_is_one_epoch_of_warm_up_and_then_torchs_cosine(rate: float, epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    expected = [1e-5]
    for _ in range(epochs - 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert [cosine_after_warm_up(rate, epoch, epochs) for epoch in range(epochs)] == pytest.approx(expected)


def transcribed_text_features(clip: Clip, vectors: Tensor) -> Tensor:
    """Vectors between [SOS] and the label, through open_clip's own modules."""
    model, rows = clip.model, []
    for label in LABELS:
        tokens = clip.tokenize([f"{label}."])
        words = model.token_embedding(tokens)
        sequence = torch.cat([words[:, :1], vectors, words[:, 1:]], dim=1)[:, :77] + model.positional_embedding
        hidden = model.ln_final(model.transformer(sequence, attn_mask=model.attn_mask))
        rows.append(hidden[0, int(tokens.argmax()) + vectors.shape[1]] @ model.text_projection)
    return F.normalize(torch.stack(rows), dim=-1)


def test_tuning_is_the_methods_specification(tiny: Clip, tmp_path: Path) -> None:
    objective, given = AdvPT(vectors=4, epochs=3, batch=8), examples()
    vectors = objective.new_prompts(tiny, LABELS, 3).text
    assert vectors is not None
    velocity = torch.zeros_like(vectors)
    for epoch, rate in enumerate([1e-5, 0.002, 0.002 * 0.75]):
        for rows in torch.randperm(20, generator=seeded(3, f"epoch-{epoch}")).split(8):
            vectors.requires_grad_()
            features = F.normalize(given.take(rows)[:, 0], dim=-1)
            loss = F.cross_entropy(100 * features @ transcribed_text_features(tiny, vectors).T, given.targets[rows])
            (gradient,) = torch.autograd.grad(loss, vectors)
            velocity = 0.9 * velocity + gradient + 5e-4 * vectors.detach()
            vectors = vectors.detach() - rate * velocity
    found = learn(tiny, tmp_path / "run.safetensors", objective, given).prompts.text
    torch.testing.assert_close(found, vectors, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(tiny: Clip, tmp_path: Path) -> None:
    """Killed in the middle of epoch 3 of 5, by a signal that nothing can catch."""
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    script = KILLED_RUN.replace("LABELS", repr(LABELS))
    assert subprocess.run([sys.executable, "-c", script, str(killed)], check=False).returncode == -9
    objective = AdvPT(vectors=4, epochs=5, batch=8)
    resumed = learn(tiny, killed, objective)
    assert resumed.text_passes == 3 * 3  # epochs 3, 4 and 5
    assert learn(tiny, whole, objective).history == resumed.history
    expected, found = load_file(whole), load_file(killed)
    assert sorted(found) == ["optimizer.0.momentum_buffer", "prompts.text"]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


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
        learn(tiny, tmp_path / "run.safetensors", objective, Examples(torch.arange(20) % 3, lambda chosen: spoiled[chosen], Cost(), 0.0))
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
