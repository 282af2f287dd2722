"""Text weights, their cache, the classifier and the defended classifier."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from robustclip.defenses import bind_chain, parse_defenses
from robustclip.errors import InvalidInput
from robustclip.models.classifier import (
    Defended,
    LabelCache,
    TorchImageEncoder,
    text_weights,
    zero_shot,
)
from robustclip.models.clip import Clip
from robustclip.models.labels import check_labels
from robustclip.models.prompts import Prompts
from robustclip.seeds import draw_seeds

LABELS = ("cat", "dog", "a red car")


def images(clip: Clip, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(5))


def test_logits_are_scale_times_cosine_of_open_clips_features(tiny: Clip) -> None:
    pixels = images(tiny)
    logits = zero_shot(tiny, Prompts(), LABELS)(pixels, draw_seeds(0, 2))
    with torch.no_grad():
        features = tiny.model.encode_image(
            (pixels - tiny.mean[:, None, None]) / tiny.std[:, None, None], normalize=True
        )
        texts = tiny.model.encode_text(
            tiny.tokenize([f"a photo of a {label}." for label in LABELS]), normalize=True
        )
        expected = tiny.model.logit_scale.exp() * features @ texts.T
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-5)


def test_templates_are_normalised_averaged_and_normalised_again(tiny: Clip) -> None:
    templates = ("a photo of a {}.", "art of the {}.")
    single = [text_weights(tiny, Prompts(templates=(template,)), LABELS) for template in templates]
    torch.testing.assert_close(
        text_weights(tiny, Prompts(templates=templates), LABELS),
        F.normalize(sum(single, torch.zeros(())) / 2, dim=-1),
    )


def test_several_contexts_are_averaged_and_one_a_label_is_not(tiny: Clip) -> None:
    contexts = torch.randn(3, 1, 2, tiny.text_width, generator=torch.Generator().manual_seed(6))
    averaged = text_weights(tiny, Prompts(text=contexts, templates=("{}.",)), LABELS)
    single = [text_weights(tiny, Prompts(text=context, templates=("{}.",)), LABELS) for context in contexts]
    torch.testing.assert_close(
        averaged, F.normalize(torch.stack(single).mean(dim=0), dim=-1), atol=1e-5, rtol=1e-5
    )
    specific = text_weights(tiny, Prompts(text=contexts, templates=("{}.",), class_specific=True), LABELS)
    for row in range(3):
        torch.testing.assert_close(specific[row], single[row][row], atol=1e-5, rtol=1e-5)


def test_label_lists_longer_than_a_chunk_give_the_same_weights(tiny: Clip) -> None:
    labels = tuple(f"thing number {index}" for index in range(70))
    calls: list[int] = []
    weights = text_weights(tiny, Prompts(), labels, on_chunk=lambda: calls.append(1))
    assert len(calls) == 2
    torch.testing.assert_close(weights[66:], text_weights(tiny, Prompts(), labels[66:]), atol=1e-5, rtol=1e-5)


def test_the_cache_computes_a_list_once_even_when_many_ask_at_once(tiny: Clip) -> None:
    cache, passes, gate = LabelCache(), [], threading.Barrier(8)

    def ask() -> torch.Tensor:
        gate.wait()
        return cache.get(tiny, Prompts(), LABELS, on_chunk=lambda: passes.append(1))

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    assert len(passes) == 1
    assert all(answer is answers[0] for answer in answers)
    assert (cache.misses, cache.hits) == (1, 7)


def test_the_cache_keeps_no_failure_and_stays_within_its_bytes(tiny: Clip) -> None:
    cache = LabelCache(max_bytes=2 * 3 * tiny.embed_dim * 4)
    bad = Prompts(text=torch.zeros(1, 1, 3))
    for _ in range(2):
        with pytest.raises(InvalidInput):
            cache.get(tiny, bad, LABELS)
    for index in range(5):
        cache.get(tiny, Prompts(), (f"a{index}", "b", "c"))
    assert cache.bytes <= cache.max_bytes
    before = cache.misses
    cache.get(tiny, Prompts(), ("a4", "b", "c"))
    assert cache.misses == before


@pytest.mark.parametrize(
    ("labels", "field"),
    [(("cat",), "labels"), (("cat", "dog", "cat"), "labels/2"), (("cat", " "), "labels/1")],
)
def test_label_lists_without_a_decision_are_refused(labels: tuple[str, ...], field: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_labels(labels)
    assert refusal.value.field == field


ALIKE = [
    ("cat", "Cat"),
    ("cat", "cat "),
    ("hot dog", "hot  dog"),
    ("rock & roll", "rock &amp; roll"),
    ("caf\u00e9", "cafe\u0301"),
]


@pytest.mark.parametrize("pair", ALIKE)
def test_labels_that_clip_can_t_tell_apart_are_refused_naming_both(tiny: Clip, pair: tuple[str, str]) -> None:
    labels = ("dog", pair[0], "bird", pair[1])
    for ask in (zero_shot, LabelCache().get):
        with pytest.raises(InvalidInput, match="label 1") as refusal:
            ask(tiny, Prompts(), labels)
        assert refusal.value.field == "labels/3"


@pytest.mark.parametrize("label", ["<end_of_text>", "cat <START_OF_TEXT> dog", "a &lt;end_of_text&gt;"])
@pytest.mark.parametrize("template", ["a photo of a {}.", "{}."])
def test_a_label_that_spells_a_special_token_is_refused_by_name(
    tiny: Clip, label: str, template: str
) -> None:
    with pytest.raises(InvalidInput, match="special tokens") as refusal:
        text_weights(tiny, Prompts(templates=(template,)), ("cat", label))
    assert refusal.value.field == "labels/1"


@pytest.mark.parametrize("vectors", [0, 1, 32])
@pytest.mark.parametrize("own", [False, True])
def test_the_longest_label_that_fits_is_read_whole_and_one_word_more_is_refused(
    tiny: Clip, vectors: int, own: bool
) -> None:
    words = tiny.context_length - 3 - vectors  # beside [SOS], the full stop and [EOS]
    shape = (2, 1, vectors, tiny.text_width) if own else (1, vectors, tiny.text_width)
    prompts = Prompts(
        text=torch.zeros(shape) if vectors else None, templates=("{}.",), class_specific=own and vectors > 0
    )
    longest = " ".join(["cat"] * words)
    shorter = longest.replace("cat cat", "cat dog", 1)
    weights = text_weights(tiny, prompts, (shorter, longest))
    assert not torch.allclose(weights[0], weights[1])
    with pytest.raises(InvalidInput, match=f"at most {tiny.context_length} tokens fit") as refusal:
        text_weights(tiny, prompts, ("dog", longest + " cat"))
    assert refusal.value.field == "labels/1"


def test_a_defended_classifier_classifies_what_the_defense_returns(tiny: Clip) -> None:
    classifier = zero_shot(tiny, Prompts(), LABELS)
    chain = bind_chain(parse_defenses("bit_depth:2"), TorchImageEncoder(tiny))
    pixels, seeds = images(tiny), draw_seeds(0, 2)
    torch.testing.assert_close(
        Defended(classifier, chain)(pixels, seeds), classifier(chain(pixels, seeds), seeds)
    )
