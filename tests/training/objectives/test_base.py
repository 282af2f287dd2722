import pytest
import torch

from robustclip.classifier import text_weights
from robustclip.clip import Clip
from robustclip.errors import InvalidInput
from training.objectives.base import Batch, TextTuning

LABELS = ("cat", "fire salamander", "a rather long name")


def test_vectors_start_as_small_noise_of_the_seed(tiny: Clip) -> None:
    tuning = TextTuning()
    first, again, other = (tuning.new_prompts(tiny, LABELS, seed).text for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.shape == (1, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(0.02, rel=0.1)
    assert abs(float(first.mean())) < 0.002


def test_words_start_where_the_token_table_has_them(tiny: Clip) -> None:
    learned = TextTuning(words="a photo of a", vectors=4).new_prompts(tiny, LABELS, 0)
    plain = text_weights(tiny, type(learned)(templates=("a photo of a {}.",)), LABELS)
    torch.testing.assert_close(text_weights(tiny, learned, LABELS), plain, atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidInput, match="4 tokens, but there are 32 vectors"):
        TextTuning(words="a photo of a").new_prompts(tiny, LABELS, 0)


@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_class_specific_contexts_are_one_a_label(tiny: Clip, words: str) -> None:
    prompts = TextTuning(class_specific=True, words=words, vectors=4).new_prompts(tiny, LABELS, 0)
    assert prompts.class_specific
    assert prompts.text is not None
    assert prompts.text.shape == (3, 1, 4, 32)
    assert torch.equal(prompts.text[0], prompts.text[1]) == bool(words)


def test_the_loss_is_the_mean_cross_entropy_over_pictures_and_their_embeddings(tiny: Clip) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings, targets = 7 * torch.randn(5, 3, 32, generator=generator), torch.tensor([0, 2, 1, 1, 0])
    prompts = TextTuning(vectors=4).new_prompts(tiny, LABELS, 0)
    step = TextTuning(vectors=4).loss(tiny, prompts, LABELS, Batch(embeddings, targets, targets))
    weights, each, hits = text_weights(tiny, prompts, LABELS), [], []
    for picture, target in zip(embeddings, targets, strict=True):
        for embedding in picture:
            logits = tiny.logit_scale * (embedding / embedding.norm()) @ weights.T
            each.append(logits.logsumexp(dim=0) - logits[target])
            hits.append(float(logits.argmax() == target))
    assert list(step.losses) == ["cross_entropy"]
    torch.testing.assert_close(step.losses["cross_entropy"], torch.stack(each).mean(), atol=1e-4, rtol=1e-5)
    assert float(step.accuracy) == pytest.approx(sum(hits) / len(hits))


def test_a_step_is_one_text_pass_whatever_the_batch(tiny: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    encode = tiny.model.token_embedding.forward
    monkeypatch.setattr(tiny.model.token_embedding, "forward", lambda tokens: passes.append(len(tokens)) or encode(tokens))
    prompts = TextTuning(vectors=4).new_prompts(tiny, LABELS, 0)
    targets = torch.zeros(50, dtype=torch.int64)
    TextTuning(vectors=4).loss(tiny, prompts, LABELS, Batch(torch.ones(50, 2, 32), targets, targets))
    assert passes == [3]
