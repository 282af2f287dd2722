"""What every method of `AnyObjective` must keep."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import write_pictures
from tuning import Bench, bench, silent

from prompts_store.store import PromptStore
from robustclip.models.clip import Clip
from robustclip.models.towers import check_prompts
from training.data.folders import load_data
from training.learning.objectives import OBJECTIVES
from training.learning.tuning.loop import fit
from training.learning.tuning.publish import publish

KINDS = sorted(OBJECTIVES)


def small(kind: str, **options: object) -> Any:
    """Few vectors, and no random crops, which make one epoch's loss no match for another's."""
    fields = OBJECTIVES[kind].model_fields
    plain: dict[str, object] = {"crops": False} if "crops" in fields else {}
    if "vectors" in fields:
        plain["vectors"] = min(4, fields["vectors"].default)
    return OBJECTIVES[kind].model_validate({"batch": 6, **plain, **options})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), train=12)


@pytest.fixture
def made(request: pytest.FixtureRequest, tiny: Clip, pictures: Path, tmp_path: Path) -> Bench:
    return bench(tiny, pictures, tmp_path, request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_lowers_its_loss_and_leaves_a_set_that_the_store_accepts(
    tiny: Clip, tmp_path: Path, kind: str
) -> None:
    objective = small(kind, epochs=12)
    data = load_data(write_pictures(tmp_path / "pictures", train=6), "train")
    examples = objective.prepare(
        tiny, data, torch.arange(18), seed=0, folder=tmp_path / "cache", progress=silent
    )
    assert len(examples) == 18
    fitted = fit(
        tiny, objective, examples, data.labels, seed=0, checkpoint=tmp_path / "checkpoint", progress=silent
    )
    assert fitted.history[-1].loss < 0.9 * fitted.history[0].loss
    check_prompts(tiny, fitted.prompts, labels=3)
    cost = examples.cost
    for epoch in fitted.history:
        cost = cost.plus(epoch.cost)
    assert cost == objective.bill(18)
    store = PromptStore(tmp_path / "store")
    ref = publish(
        store, tiny, objective, fitted.prompts, name="learned", data=data, shots=0, seed=0, activate=True
    )
    loaded = store.load("learned", tiny)
    assert loaded.ref == ref
    assert loaded.manifest.objective == objective.model_dump(mode="json")
    assert loaded.manifest.labels == data.labels
    assert loaded.prompts.digest() == fitted.prompts.digest()


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective_starts_from_its_seed_alone(tiny: Clip, kind: str) -> None:
    objective = small(kind)
    before = torch.get_rng_state()
    first, again, other = (
        objective.fold(tiny, objective.new_parameters(tiny, ("cat", "dog"), seed)).digest()
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_every_parameter_learns_in_float32_and_the_clip_does_not(made: Bench) -> None:
    losses = made.step().losses
    assert all(term.dtype == torch.float32 and term.shape == () for term in losses.values())
    sum(losses.values()).backward()
    for name, tensor in made.parameters.items():
        assert tensor.dtype == torch.float32
        assert tensor.grad is not None, name
        assert bool(tensor.grad.any()), name
    assert all(weight.grad is None for weight in made.task.clip.model.parameters())


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_a_step_runs_the_text_tower_as_often_as_it_says(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    embedding = made.task.clip.model.token_embedding
    encode = embedding.forward
    monkeypatch.setattr(
        embedding,
        "forward",
        lambda tokens: (passes.append(len(tokens)) if tokens.ndim == 2 else None) or encode(tokens),
    )
    step = made.step()
    assert passes == [3] * step.text_passes  # all labels at once
    assert step.text_passes == (2 if hasattr(made.objective, "teacher") else 1)


@pytest.mark.parametrize("made", KINDS, indirect=True)
def test_an_equal_step_is_equal_to_the_last_bit(made: Bench) -> None:
    before = torch.get_rng_state()
    memory = {name: tensor.clone() for name, tensor in made.task.memory.items()}
    first = made.step().losses
    for name, tensor in memory.items():
        made.task.memory[name].copy_(tensor)
    assert all(torch.equal(first[name], term) for name, term in made.step().losses.items())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_an_objective_is_described(kind: str) -> None:
    assert all(field.description for name, field in OBJECTIVES[kind].model_fields.items() if name != "kind")


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_gives_every_objective_back(kind: str) -> None:
    objective = OBJECTIVES[kind]()
    assert OBJECTIVES[kind].model_validate(objective.model_dump(mode="json")) == objective
