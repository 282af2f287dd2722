from pathlib import Path

from prompts_store.handcrafted import handcrafted_sets
from prompts_store.store import SHIPPED, PromptStore
from robustclip.models.classifier import zero_shot
from robustclip.models.clip import Clip


def files_below(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_writing_the_handcrafted_sets_again_gives_the_shipped_files(tmp_path: Path) -> None:
    for prompt_set in handcrafted_sets():
        PromptStore(tmp_path).publish(prompt_set, activate=True)
    assert files_below(tmp_path) == {
        path: data for path, data in files_below(SHIPPED).items() if path.startswith("any/handcrafted")
    }


def test_everything_that_ships_can_be_served() -> None:
    assert PromptStore(SHIPPED, read_only=True).verify() == []


def test_the_ensemble_judges_like_the_mean_of_its_templates(tiny: Clip) -> None:
    store = PromptStore(SHIPPED, read_only=True)
    prompts = store.load("handcrafted-ensemble", tiny).prompts
    assert len(prompts.templates) == 7
    assert zero_shot(tiny, prompts, ("cat", "dog")).weights.shape == (2, tiny.embed_dim)
    assert store.load("handcrafted", tiny).prompts.templates == ("a photo of a {}.",)
