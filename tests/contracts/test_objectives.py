"""Every method of the table, by being listed there."""

from pathlib import Path

import pytest
import torch
from pictures import write_pictures

from prompts_store.store import PromptStore
from robustclip.clip import Clip
from robustclip.towers import check_prompts
from training.data import load_data
from training.loop import fit
from training.objectives import OBJECTIVES
from training.publish import publish


def silent(done: int, total: int, what: str) -> None:
    pass


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_every_objective_lowers_its_loss_and_leaves_a_set_that_the_store_accepts(tiny: Clip, tmp_path: Path, kind: str) -> None:
    objective = OBJECTIVES[kind](vectors=4, epochs=12, batch=6)
    data = load_data(write_pictures(tmp_path / "pictures", train=6), "train")
    examples = objective.prepare(tiny, data, torch.arange(18), seed=0, folder=tmp_path / "cache", progress=silent)
    assert len(examples) == 18
    fitted = fit(tiny, objective, examples, data.labels, seed=0, checkpoint=tmp_path / "checkpoint", progress=silent)
    assert fitted.history[-1].loss < 0.9 * fitted.history[0].loss
    check_prompts(tiny, fitted.prompts, labels=3)
    store = PromptStore(tmp_path / "store")
    ref = publish(store, tiny, objective, fitted.prompts, name="learned", data=data, shots=0, seed=0, activate=True)
    loaded = store.load("learned", tiny)
    assert loaded.ref == ref
    assert loaded.manifest.objective == objective.model_dump(mode="json")
    assert loaded.manifest.labels == data.labels
    assert loaded.prompts.digest() == fitted.prompts.digest()


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_every_objective_starts_from_its_seed_alone(tiny: Clip, kind: str) -> None:
    objective = OBJECTIVES[kind](vectors=4)
    before = torch.get_rng_state()
    first, again, other = (objective.new_prompts(tiny, ("cat", "dog"), seed).digest() for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_every_parameter_of_an_objective_is_described(kind: str) -> None:
    assert all(field.description for name, field in OBJECTIVES[kind].model_fields.items() if name != "kind")
