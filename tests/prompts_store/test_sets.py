"""The sets that ship: each verified, active, and fit for the backbone that ships beside them."""

import pytest
import torch

from prompts_store.store import SHIPPED, PromptStore
from robustclip.models.classifier import text_weights
from robustclip.models.clip import load_clip
from training.learning.tuning.selection import check_carried

LEARNED_BY = ("coop", "advpt", "advpt-plus", "apt", "fap", "capt", "apd")
OF_THE_TABLES = {f"{data}-{method}" for data in ("caltech-101", "cifar-10") for method in LEARNED_BY}


@pytest.mark.parametrize(("backbone", "more"), [("mini", {"caltech-advpt"}), ("mini-robust", set())])
def test_every_shipped_set_is_active_and_fits_the_backbone_that_ships(backbone: str, more: set[str]) -> None:
    clip, store = load_clip(backbone), PromptStore(SHIPPED, read_only=True)
    assert store.verify(clip) == []
    assert (
        set(store.active(clip.fingerprint)) == {"handcrafted", "handcrafted-ensemble"} | more | OF_THE_TABLES
    )
    for ref in store.active(clip.fingerprint).values():
        prompt_set = store.load(ref, clip)
        labels = (
            prompt_set.manifest.labels
            if prompt_set.manifest.class_specific
            else ("cat", "a rather long and unlikely label")
        )
        with torch.no_grad():
            weights = text_weights(clip, prompt_set.prompts, labels)
        torch.testing.assert_close(weights.norm(dim=-1), torch.ones(len(labels)))


@pytest.mark.parametrize("backbone", ["mini", "mini-robust"])
def test_every_learned_set_ships_with_its_report_and_with_what_it_did_on_pictures_that_it_never_saw(
    backbone: str,
) -> None:
    clip, store = load_clip(backbone), PromptStore(SHIPPED, read_only=True)
    for name in OF_THE_TABLES:
        stored = next(one for one in store.versions(name, clip.fingerprint) if one.state == "active")
        assert stored.manifest is not None
        measured = {(result.split, result.threat) for result in stored.manifest.results}
        assert measured >= {("train:validation", "clean"), ("test", "clean"), ("test", "T0"), ("test", "T2")}
        selection = check_carried(
            stored.manifest.objective, ref=str(stored.ref)
        )  # refuses one that was made on test pictures
        assert (selection is not None) == (name.rsplit("-", 1)[-1] in ("apt", "capt", "apd"))
        assert all(
            result.attack is not None and result.n == 256
            for result in stored.manifest.results
            if result.threat != "clean"
        )
        report = stored.path.with_suffix(".html").read_text()
        assert "Loss terms" in report
        assert f"<h1>{name}: " in report
        assert str(stored.ref) in report


def test_the_learned_set_says_how_it_was_made_and_how_it_did() -> None:
    clip = load_clip("mini")
    manifest = PromptStore(SHIPPED, read_only=True).load("caltech-advpt", clip).manifest
    assert manifest.clip is not None
    assert manifest.clip.fingerprint == clip.fingerprint
    assert (manifest.objective["kind"], manifest.shots, manifest.seed) == ("advpt", 16, 0)
    assert len(manifest.labels) == 101
    assert manifest.results
    assert not any(
        "test" in result.split for result in manifest.results
    )  # nothing was chosen on test pictures
