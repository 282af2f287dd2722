"""The sets that ship: each verified, active, and fit for the backbone that ships beside them."""

import pytest
import torch

from prompts_store.store import SHIPPED, PromptStore
from robustclip.classifier import text_weights
from robustclip.clip import load_clip


@pytest.mark.parametrize(("backbone", "learned"), [("mini", {"caltech-advpt"}), ("mini-robust", set())])
def test_every_shipped_set_is_active_and_fits_the_backbone_that_ships(backbone: str, learned: set[str]) -> None:
    clip, store = load_clip(backbone), PromptStore(SHIPPED, read_only=True)
    assert store.verify(clip) == []
    assert set(store.active(clip.fingerprint)) == {"handcrafted", "handcrafted-ensemble"} | learned
    for ref in store.active(clip.fingerprint).values():
        prompt_set = store.load(ref, clip)
        with torch.no_grad():
            weights = text_weights(clip, prompt_set.prompts, ("cat", "a rather long and unlikely label"))
        torch.testing.assert_close(weights.norm(dim=-1), torch.ones(2))


def test_the_learned_set_says_how_it_was_made_and_how_it_did() -> None:
    clip = load_clip("mini")
    manifest = PromptStore(SHIPPED, read_only=True).load("caltech-advpt", clip).manifest
    assert manifest.clip is not None
    assert manifest.clip.fingerprint == clip.fingerprint
    assert (manifest.objective["kind"], manifest.shots, manifest.seed) == ("advpt", 16, 0)
    assert len(manifest.labels) == 101
    assert manifest.results
    assert not any("test" in result.split for result in manifest.results)  # nothing was chosen on test pictures
