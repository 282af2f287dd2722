"""Softmax and sigmoid: what logits and probabilities are, and what a decision may say."""

from typing import Any, cast

import open_clip
import pytest
import torch
from open_clip.loss import SigLipLoss
from sigmoid import BIAS, sigmoid_backbone, sigmoid_clip
from toys import gratings

from robustclip.deployed import deploy
from robustclip.errors import InvalidInput
from robustclip.models.classifier import LabelCache, zero_shot
from robustclip.models.clip import Clip, describe, load_clip
from robustclip.models.prompts import Prompts
from robustclip.models.scoring import NONE, Scoring, logit_bias, outcomes, scores_of, trained_with
from robustclip.scores.kinds import label_score
from robustclip.scores.losses import LossName
from robustclip.seeds import draw_seeds

LABELS = ("cat", "dog", "a red car")
PIXELS, _ = gratings(4, seed=2)
SEEDS = draw_seeds(0, 4)


@pytest.fixture(scope="module")
def biased() -> Clip:
    return sigmoid_clip()


def test_sigmoid_probabilities_are_those_of_open_clips_siglip_loss() -> None:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
    torch.manual_seed(4)
    model = cast(Any, open_clip.CLIP(32, vision, text, init_logit_scale=2.3, init_logit_bias=-3.0))
    clip = describe(model, "small", "seeded")
    classifier = zero_shot(clip, Prompts(), LABELS)
    assert (classifier.scoring, trained_with(clip), classifier.labels) == (
        "sigmoid",
        "sigmoid",
        (*LABELS, NONE),
    )
    logits = classifier(PIXELS, SEEDS)
    with torch.no_grad():
        images = model.encode_image(
            (PIXELS - clip.mean[:, None, None]) / clip.std[:, None, None], normalize=True
        )
        texts = model.encode_text(
            clip.tokenize([f"a photo of a {label}." for label in LABELS]), normalize=True
        )
        loss = SigLipLoss()
        expected = loss.get_logits(images, texts, model.logit_scale.exp(), model.logit_bias)
    torch.testing.assert_close(logits[:, :-1], expected, atol=1e-4, rtol=1e-4)
    assert (logits[:, -1] == 0).all()
    scores = classifier.scores(logits)
    torch.testing.assert_close(scores[:, :-1], expected.sigmoid())
    torch.testing.assert_close(scores[:, -1], 1 - expected.sigmoid().amax(dim=1))


def test_the_decision_is_the_likeliest_label_from_a_half_on_else_none() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0], [-1.0, 0.0, 0.0], [40.0, 41.0, 0.0]])
    assert logits.argmax(dim=1).tolist() == [1, 2, 1, 1]
    scores = scores_of(logits, "sigmoid")
    assert scores[:3].argmax(dim=1).tolist() == [1, 2, 1]
    assert scores[1].tolist() == pytest.approx([0.2689, 0.1192, 0.7311], abs=1e-4)


def test_softmax_of_a_clip_with_a_bias_is_that_without_it(tiny: Clip, biased: Clip) -> None:
    plain = zero_shot(tiny, Prompts(), LABELS)
    asked = zero_shot(biased, Prompts(), LABELS, scoring="softmax")
    assert asked.labels == LABELS
    torch.testing.assert_close(asked(PIXELS, SEEDS), plain(PIXELS, SEEDS))


def test_a_bias_is_in_the_fingerprint_and_comes_back_from_a_file(
    tiny: Clip, biased: Clip, tmp_path: Any
) -> None:
    assert biased.fingerprint not in (tiny.fingerprint, sigmoid_clip(BIAS - 1).fingerprint)
    loaded = logit_bias(load_clip(str(sigmoid_backbone(tmp_path))))
    assert loaded is not None
    assert (float(loaded), loaded.shape) == (BIAS, ())
    assert logit_bias(tiny) is None


def test_sigmoid_without_a_bias_is_refused_with_the_reason(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="no logit bias") as refusal:
        deploy(tiny, Prompts(), LABELS, scoring="sigmoid")
    assert refusal.value.field == "scoring"


def test_one_label_is_a_decision_under_sigmoid_alone(biased: Clip) -> None:
    classifier = deploy(biased, Prompts(), ("cat",))
    assert classifier.outcomes == ("cat", NONE)
    assert [label for label, _ in classifier(PIXELS[0]).predictions] == ["cat"]
    with pytest.raises(InvalidInput, match="at least 2 labels, found 1"):
        deploy(biased, Prompts(), ("cat",), scoring="softmax")
    for labels in ((), ("cat", "None of these")):
        with pytest.raises(InvalidInput):
            deploy(biased, Prompts(), labels)
    assert outcomes(("cat", NONE), "softmax") == ("cat", NONE), "a label like any under softmax"


def test_both_scorings_share_their_text_features(biased: Clip) -> None:
    cache = LabelCache()
    scorings: tuple[Scoring, ...] = ("softmax", "sigmoid")
    for scoring in scorings:
        zero_shot(biased, Prompts(), LABELS, cache=cache, scoring=scoring)
    assert (cache.hits, cache.misses) == (1, 1)


def test_an_answer_shows_that_none_fits(tiny: Clip) -> None:
    for bias, none in ((-30.0, True), (30.0, False)):
        answer = deploy(sigmoid_clip(bias), Prompts(), LABELS)(PIXELS[0])
        assert (answer.none_of_these, answer.label == NONE) == (none, none)
        assert len(answer.predictions) == len(LABELS)
        assert str(answer).startswith("none of these: ") == none
    usual = deploy(tiny, Prompts(), ("cat", NONE))(PIXELS[0])
    assert {label for label, _ in usual.predictions} == {"cat", NONE}
    assert not usual.none_of_these


def test_equal_scores_are_ranked_by_their_logits() -> None:
    """In float32 the sigmoids of 20 and 30 are both 1."""
    sure = deploy(sigmoid_clip(60.0), Prompts(), LABELS)
    logits = sure.served(PIXELS[:1], draw_seeds(0, 1))[0]
    answer = sure(PIXELS[0])
    assert [score for _, score in answer.predictions] == [1.0, 1.0, 1.0]
    assert answer.label == LABELS[int(logits[:-1].argmax())]


def test_a_vote_may_be_for_none_of_the_labels() -> None:
    answer = deploy(sigmoid_clip(-90.0), Prompts(), LABELS, defense="smoothing:0.1")(PIXELS[0])
    assert answer.ballot is not None
    assert answer.ballot.counts == {NONE: answer.ballot.votes}
    assert (answer.none_of_these, answer.label) == (True, NONE)


def test_one_labels_cross_entropy_is_the_binary_one(biased: Clip) -> None:
    classifier = zero_shot(biased, Prompts(), ("cat",))
    own = classifier(PIXELS, SEEDS)[:, 0]
    for target, sign in ((0, 1), (1, -1)):
        targets = torch.full((4,), target)
        seen = label_score("cross_entropy", classifier, targets)(PIXELS, SEEDS, grad=False)
        torch.testing.assert_close(seen.value, -torch.nn.functional.logsigmoid(sign * own))
        torch.testing.assert_close(seen.margin, -sign * own)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr", "targeted_margin", "targeted_dlr"])
@pytest.mark.parametrize(
    ("scoring", "target"), [("softmax", 1), ("sigmoid", 1), ("sigmoid", 4)], ids=["softmax", "sigmoid", NONE]
)
def test_gradients_of_losses_agree_with_central_differences(
    biased: Clip, loss: LossName, scoring: Scoring, target: int
) -> None:
    classifier = zero_shot(biased, Prompts(), (*LABELS, "a ship"), scoring=scoring)
    targets = torch.full((4,), target)
    rivals = torch.zeros(4, dtype=torch.int64) if loss.startswith("targeted") else None
    score = label_score(loss, classifier, targets, rivals=rivals, temperature=10.0)
    seen = score(PIXELS, SEEDS, grad=True)
    assert seen.grad is not None
    step, direction = 2e-3, torch.nn.functional.normalize(seen.grad.flatten(1)).reshape(PIXELS.shape)
    ahead = score(PIXELS + step * direction, SEEDS, grad=False).value
    behind = score(PIXELS - step * direction, SEEDS, grad=False).value
    slope = (seen.grad * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, rtol=0.05, atol=2e-3)
