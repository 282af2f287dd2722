"""Kept noise: found again, refused when foreign, and honest about what it was asked before."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustclip.certificates.certify import (
    CertifyOptions,
    NoisyFeatures,
    certify,
    certify_features,
    noisy_classifier,
    noisy_features,
)
from robustclip.certificates.noise_cache import NoiseKey, Portion, cached_features, portion_for, question_of
from robustclip.defenses import parse_defenses
from robustclip.errors import DataRefused
from robustclip.models.classifier import ZeroShotClassifier, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts

OPTIONS = CertifyOptions(sigma=1.0, n0=8, n=40)
PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))


def never(portion: int) -> NoisyFeatures:
    raise AssertionError(f"portion {portion} is made again")


@pytest.fixture(scope="module")
def classifier(tiny: Clip) -> ZeroShotClassifier:
    return zero_shot(tiny, Prompts(), ("cat", "dog", "car"))


@pytest.fixture
def key(tiny: Clip, classifier: ZeroShotClassifier) -> NoiseKey:
    return NoiseKey.of(tiny, classifier, PICTURE, OPTIONS)


@pytest.fixture(scope="module")
def make(classifier: ZeroShotClassifier) -> Callable[[int], NoisyFeatures]:
    return lambda portion: noisy_features(
        noisy_classifier(classifier, OPTIONS.sigma), PICTURE, OPTIONS, portion=portion
    )


@pytest.fixture
def kept(tmp_path: Path, key: NoiseKey, make: Callable[[int], NoisyFeatures]) -> Path:
    cached_features(tmp_path, key, make)
    return tmp_path / key.folder / "noise-0.safetensors"


def test_noise_is_made_once_and_serves_every_list_of_labels(
    tiny: Clip, tmp_path: Path, kept: Path, key: NoiseKey
) -> None:
    for labels in (("cat", "dog"), ("wolf", "teapot", "cat")):
        other = zero_shot(tiny, Prompts(), labels)
        assert NoiseKey.of(tiny, other, PICTURE, OPTIONS) == key
        found = certify_features(other, cached_features(tmp_path, key, never), PICTURE.numel(), OPTIONS)
        assert found == certify(noisy_classifier(other, OPTIONS.sigma), PICTURE, OPTIONS)


def test_text_prompts_share_noise_and_whatever_reaches_the_tower_does_not(
    tiny: Clip, classifier: ZeroShotClassifier, key: NoiseKey
) -> None:
    text = torch.randn(1, 2, tiny.text_width, generator=torch.Generator().manual_seed(0))
    assert NoiseKey.of(tiny, zero_shot(tiny, Prompts(text), ("cat", "dog")), PICTURE, OPTIONS) == key
    visual = torch.randn(1, 2, tiny.visual_width, generator=torch.Generator().manual_seed(0))
    others = [
        NoiseKey.of(tiny, replace(classifier, visual=visual), PICTURE, OPTIONS),
        NoiseKey.of(tiny, replace(classifier, visual=-visual), PICTURE, OPTIONS),
        NoiseKey.of(replace(tiny, fingerprint="0" * 64), classifier, PICTURE, OPTIONS),
        NoiseKey.of(tiny, classifier, PICTURE + 1e-6, OPTIONS),
        NoiseKey.of(tiny, classifier, PICTURE, OPTIONS, parse_defenses("jpeg:75")),
        NoiseKey.of(tiny, classifier, PICTURE, OPTIONS, parse_defenses("jpeg:50")),
        NoiseKey.of(
            tiny, classifier, PICTURE, OPTIONS, parse_defenses([{"kind": "diffusion", "weights": "tiny"}])
        ),
        NoiseKey.of(tiny, classifier, PICTURE, OPTIONS.model_copy(update={"denoise": "tiny"})),
        *(
            NoiseKey.of(tiny, classifier, PICTURE, OPTIONS.model_copy(update=each))
            for each in ({"sigma": 0.9}, {"n0": 9}, {"n": 41}, {"seed": 1})
        ),
    ]
    assert len({each.folder for each in [key, *others]}) == 1 + len(others)
    assert NoiseKey.of(tiny, classifier, PICTURE, OPTIONS.model_copy(update={"alpha": 0.4})) == key


def test_noise_of_another_key_is_refused_even_under_the_right_name(
    tmp_path: Path, kept: Path, key: NoiseKey
) -> None:
    other = key.model_copy(update={"picture": "0" * 64})
    target = tmp_path / other.folder / kept.name
    target.parent.mkdir()
    target.write_bytes(kept.read_bytes())
    with pytest.raises(DataRefused, match="another picture") as refusal:
        cached_features(tmp_path, other, never)
    assert refusal.value.field == str(target)
    (kept.parent / "noise-1.safetensors").write_bytes(kept.read_bytes())
    with pytest.raises(DataRefused, match="another picture"):
        cached_features(tmp_path, key, never, portion=1)


@pytest.mark.parametrize("keep", [0, 7, 100, 1000])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, kept: Path, key: NoiseKey, keep: int) -> None:
    kept.write_bytes(kept.read_bytes()[:keep])
    with pytest.raises(DataRefused, match="damaged") as refusal:
        cached_features(tmp_path, key, never)
    assert refusal.value.field == str(kept)


@pytest.mark.parametrize("harm", ["nan", "scale", "rows", "dtype", "name"])
def test_a_file_that_holds_something_else_is_refused(
    tmp_path: Path, kept: Path, key: NoiseKey, harm: str
) -> None:
    tensors = load_file(kept)
    counting = tensors["counting"]
    match harm:
        case "nan":
            counting[3, 1] = math.nan
        case "scale":
            counting *= 2
        case "rows":
            tensors["counting"] = counting[:-1].clone()
        case "dtype":
            tensors["counting"] = counting.half()
        case _:
            tensors["extra"] = counting.clone()
    save_file(tensors, kept, {"key": key.text, "portion": "0"})
    with pytest.raises(DataRefused):
        cached_features(tmp_path, key, never)


def test_a_cache_that_can_not_be_is_refused_and_nothing_is_left(
    tmp_path: Path, key: NoiseKey, make: Callable[[int], NoisyFeatures]
) -> None:
    (tmp_path / "file").write_text("no folder")
    for use in (lambda root: cached_features(root, key, make), lambda root: portion_for(root, key, "0" * 64)):
        with pytest.raises(DataRefused, match="can't be used"):
            use(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_question_to_the_same_noise_is_exploratory_until_fresh_noise_confirms_it(
    tmp_path: Path, key: NoiseKey
) -> None:
    first, second, third = ("1" * 64, "2" * 64, "3" * 64)
    assert portion_for(tmp_path, key, first) == Portion(0, exploratory=False)
    assert portion_for(tmp_path, key, second) == Portion(0, exploratory=True)
    assert portion_for(tmp_path, key, second, confirm=True) == Portion(1, exploratory=False)
    assert portion_for(tmp_path, key, second) == Portion(
        1, exploratory=False
    )  # the same question again is the same statement
    assert portion_for(tmp_path, key, third, confirm=True) == Portion(2, exploratory=False)
    assert portion_for(tmp_path, key, first, confirm=True) == Portion(0, exploratory=False)


def test_of_many_who_ask_at_once_each_portion_serves_one(tmp_path: Path, key: NoiseKey) -> None:
    with ThreadPoolExecutor(8) as pool:
        portions = list(
            pool.map(lambda number: portion_for(tmp_path, key, f"{number:064}", confirm=True), range(8))
        )
    assert sorted(portion.number for portion in portions) == list(range(8))
    assert not any(portion.exploratory for portion in portions)


def test_a_question_is_its_statements_in_any_order(tiny: Clip, classifier: ZeroShotClassifier) -> None:
    other = zero_shot(tiny, Prompts(templates=("a {}.",)), ("cat", "dog", "car"))
    assert question_of([classifier, other], 0.001) == question_of([other, classifier], 0.001)
    assert (
        len({question_of([classifier], 0.001), question_of([other], 0.001), question_of([classifier], 0.01)})
        == 3
    )
