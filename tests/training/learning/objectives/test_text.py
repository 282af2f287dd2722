import pytest
import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.types import Cost
from training.learning.objectives.base import Batch, Examples, Step, Task
from training.learning.objectives.text import TextTuning

LABELS = ("cat", "fire salamander", "a rather long name")


def start(clip: Clip, tuning: TextTuning, seed: int = 0) -> Prompts:
    return tuning.fold(clip, tuning.new_parameters(clip, LABELS, seed))


def step(clip: Clip, tuning: TextTuning, embeddings: Tensor, targets: Tensor) -> Step:
    task = Task(clip, LABELS, Examples(targets, lambda rows: embeddings[rows], Cost(), 0.0), {})
    return tuning.loss(
        task, tuning.new_parameters(clip, LABELS, 0), Batch(embeddings, targets, targets, targets, 0.0)
    )


def test_vectors_start_as_small_noise_of_the_seed(tiny: Clip) -> None:
    tuning = TextTuning()
    first, again, other = (start(tiny, tuning, seed).text for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.shape == (1, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(0.02, rel=0.1)
    assert abs(float(first.mean())) < 0.002


def test_words_start_where_the_token_table_has_them(tiny: Clip) -> None:
    learned = start(tiny, TextTuning(words="a photo of a", vectors=4))
    plain = text_weights(tiny, type(learned)(templates=("a photo of a {}.",)), LABELS)
    torch.testing.assert_close(text_weights(tiny, learned, LABELS), plain, atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidInput, match="4 tokens, but there are 32 vectors"):
        start(tiny, TextTuning(words="a photo of a"))


@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_class_specific_contexts_are_one_a_label(tiny: Clip, words: str) -> None:
    prompts = start(tiny, TextTuning(class_specific=True, words=words, vectors=4))
    assert prompts.class_specific
    assert prompts.text is not None
    assert prompts.text.shape == (3, 1, 4, 32)
    assert torch.equal(prompts.text[0], prompts.text[1]) == bool(words)


def test_the_loss_is_the_mean_cross_entropy_over_pictures_and_their_embeddings(tiny: Clip) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, targets = 7 * torch.randn(5, 3, 32, generator=generator), torch.tensor([0, 2, 1, 1, 0])
    prompts = start(tiny, TextTuning(vectors=4))
    found = step(tiny, TextTuning(vectors=4), embeddings, targets)
    weights, each, hits = text_weights(tiny, prompts, LABELS), [], []
    for picture, target in zip(embeddings, targets, strict=True):
        for embedding in picture:
            logits = tiny.logit_scale * (embedding / embedding.norm()) @ weights.T
            each.append(logits.logsumexp(dim=0) - logits[target])
            hits.append(float(logits.argmax() == target))
    assert list(found.losses) == ["cross_entropy"]
    torch.testing.assert_close(found.losses["cross_entropy"], torch.stack(each).mean(), atol=1e-4, rtol=1e-5)
    assert found.accuracy is not None
    assert float(found.accuracy) == pytest.approx(sum(hits) / len(hits))


def test_a_step_is_one_text_pass_whatever_the_batch(tiny: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    encode = tiny.model.token_embedding.forward
    monkeypatch.setattr(
        tiny.model.token_embedding, "forward", lambda tokens: passes.append(len(tokens)) or encode(tokens)
    )
    step(tiny, TextTuning(vectors=4), torch.ones(50, 2, 32), torch.zeros(50, dtype=torch.int64))
    assert passes == [3]


def test_words_beyond_the_vectors_stay_around_the_label(tiny: Clip) -> None:
    prompts = start(tiny, TextTuning(words="a photo of a", vectors=2))
    assert prompts.templates == ("of a {}.",)
    torch.testing.assert_close(
        text_weights(tiny, prompts, LABELS), text_weights(tiny, Prompts(), LABELS), atol=1e-5, rtol=1e-5
    )
