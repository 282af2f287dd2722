"""From prompts and labels to a classifier: text weights, their cache, the zero-shot classifier, and a
classifier behind a defense.

`/classify`, `/probe`, training and `robustclip evaluate` all use `Defended(ZeroShotClassifier, defense)`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.models.labels import as_read, check_labels
from robustclip.models.prompts import Prompts, PromptSource, prompts_for
from robustclip.models.scoring import (
    Scoring,
    logit_bias,
    outcomes,
    scores_of,
    scoring_for,
    with_none,
)
from robustclip.models.towers import check_prompts, encode_image, encode_text
from robustclip.types import Defense, Features, ImageEncoder, Logits, Pixels, Seeds, Toll

TEXT_CHUNK = 64  # labels a text pass: bounds memory and how long a cold label list can hold the device


@dataclass(frozen=True, eq=False)
class TorchImageEncoder:
    """The reference `ImageEncoder`: float32 torch, differentiable in pixels and in the visual prompts."""

    clip: Clip
    backend: str = "torch"

    def __call__(self, pixels: Pixels, visual: Tensor | None) -> Features:
        return F.normalize(encode_image(self.clip, pixels, visual), dim=-1)


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """Pixels to unit features [B, E] under a visual prompt ([D, N, W] or None) and a bound defense.

    What of the defense works on pixels runs before the image tower, what works on features behind it.
    """

    encoder: ImageEncoder
    visual: Tensor | None
    defense: Defense

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Features:
        before, behind = self.defense.at("pixels"), self.defense.at("features")
        features = self.encoder(pixels if before is None else before(pixels, seeds), self.visual)
        return features if behind is None else behind(features, seeds)


def text_weights(
    clip: Clip,
    prompts: Prompts,
    labels: tuple[str, ...],
    *,
    chunk: int = TEXT_CHUNK,
    on_chunk: Callable[[], None] | None = None,
) -> Tensor:
    """[C, E] unit text features of labels under prompts.

    Several templates or contexts: each text feature is normalised, then averaged, then normalised again.
    Gradients reach `prompts.text`. `on_chunk` is called before each text pass of at most `chunk` labels (a
    service counts and yields there). InvalidInput names the first label that spells one of CLIP's special
    tokens or does not fit its context: nothing is cut off.
    """
    check_prompts(clip, prompts, labels=len(labels))
    contexts: list[Tensor | None] = (
        [prompts.text]
        if prompts.text is None or prompts.text.ndim == 3 or prompts.class_specific
        else list(prompts.text)
    )
    features: list[Tensor] = []
    for template in prompts.templates:
        tokens = _tokens(
            clip, template, labels, vectors=0 if prompts.text is None else prompts.text.shape[-2]
        ).to(clip.device)
        for context in contexts:
            chunks: list[Tensor] = []
            for start in range(0, len(labels), chunk):
                if on_chunk is not None:
                    on_chunk()
                rows = slice(start, start + chunk)
                row_context = context[rows] if context is not None and context.ndim == 4 else context
                chunks.append(encode_text(clip, tokens[rows], row_context))
            features.append(F.normalize(torch.cat(chunks), dim=-1))
    if len(features) == 1:
        return features[0]
    return F.normalize(torch.stack(features).mean(dim=0), dim=-1)


def _tokens(clip: Clip, template: str, labels: tuple[str, ...], *, vectors: int) -> Tensor:
    """[C, T] token ids of the labels in a template, with room for the vectors before them."""
    length = clip.context_length
    tokens, lengths, special = clip.tokenize.read(
        [template.replace("{}", as_read(label)) for label in labels]
    )
    if bool(special.any()):
        index = int(special.int().argmax())
        raise InvalidInput(
            f"{labels[index]!r:.80} spells one of CLIP's special tokens.",
            field=f"labels/{index}",
            help=f"Leave out {' and '.join(clip.tokenize.specials)}.",
        )
    if bool((long := lengths + vectors > length).any()):
        index = int(long.int().argmax())
        found = f"{labels[index]!r:.80} needs more" + (
            f" behind {vectors} prompt vectors." if vectors else "."
        )
        raise InvalidInput(
            f"at most {length} tokens fit, {found}", field=f"labels/{index}", help="Shorten it."
        )
    return tokens


class LabelCache:
    """Text weights by (CLIP fingerprint, prompt digest, labels), least recently used out, bounded in bytes,
    one computation a key.

    A second caller waits for the first; a failure is not kept, and all who waited get it. Thread-safe.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str, tuple[str, ...]], Future[Tensor]] = OrderedDict()
        self._bytes = 0

    @property
    def bytes(self) -> int:
        return self._bytes

    def get(
        self,
        clip: Clip,
        prompts: Prompts,
        labels: tuple[str, ...],
        *,
        on_chunk: Callable[[], None] | None = None,
    ) -> Tensor:
        """[C, E] unit text features, computed once, without gradients. Raises InvalidInput as `check_labels`
        and `text_weights`.
        """
        key = (clip.fingerprint, prompts.digest(), labels)
        with self._lock:
            future = self._entries.get(key)
            owner = future is None
            if future is None:
                self.misses += 1
                future = self._entries[key] = Future()
            else:
                self.hits += 1
                self._entries.move_to_end(key)
        if not owner:
            return future.result()
        try:
            check_labels(labels, clip, least=1)  # how many make a decision depends on its scoring
            with torch.no_grad():
                weights = text_weights(clip, prompts, labels, on_chunk=on_chunk)
        except BaseException as error:
            with self._lock:
                self._entries.pop(key, None)
            future.set_exception(error)
            raise
        future.set_result(weights)
        with self._lock:
            self._bytes += _size(weights)
            while self._bytes > self.max_bytes and len(self._entries) > 1:
                oldest, entry = next(iter(self._entries.items()))
                if not entry.done() or oldest == key:
                    break
                del self._entries[oldest]
                self._bytes -= _size(entry.result())
        return weights


def _size(weights: Tensor) -> int:
    return weights.numel() * weights.element_size()


@dataclass(frozen=True, eq=False)
class ZeroShotClassifier:
    """`logit_scale * features @ weights.T` over an image encoder; differentiable in pixels when the encoder
    is.

    labels      what the logits are of; the last is `robustclip.models.scoring.NONE` where there is a bias
    weights     [C, E] unit text features
    visual      the prompt set's [D, N, W] image vectors or None
    logit_bias  [] for a sigmoid decision, added to the logits; None for a softmax, which it would not change
    """

    encoder: ImageEncoder
    labels: tuple[str, ...]
    weights: Tensor
    logit_scale: Tensor
    visual: Tensor | None = None
    logit_bias: Tensor | None = None

    @property
    def scoring(self) -> Scoring:
        return "softmax" if self.logit_bias is None else "sigmoid"

    def features(self, pixels: Pixels) -> Features:
        """[B, E] unit image features."""
        return self.encoder(pixels, self.visual)

    def judge(self, features: Features) -> Logits:
        """[B, C] logits of unit features; with a bias [B, C + 1]."""
        logits = self.logit_scale * features @ self.weights.T
        return logits if self.logit_bias is None else with_none(logits + self.logit_bias)

    def scores(self, logits: Logits) -> Tensor:
        """The probabilities of `labels` that logits stand for."""
        return scores_of(logits, self.scoring)

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        return self.judge(self.features(pixels))


def classifier_of(
    clip: Clip,
    labels: tuple[str, ...],
    weights: Tensor,
    scoring: Scoring,
    *,
    encoder: ImageEncoder,
    visual: Tensor | None,
) -> ZeroShotClassifier:
    """The classifier of text features [C, E] under a scoring that the CLIP has. Raises as `outcomes`."""
    bias = logit_bias(clip) if scoring == "sigmoid" else None
    return ZeroShotClassifier(encoder, outcomes(labels, scoring), weights, clip.logit_scale, visual, bias)


def zero_shot(
    clip: Clip,
    prompts: Prompts | PromptSource,
    labels: Sequence[str],
    *,
    encoder: ImageEncoder | None = None,
    cache: LabelCache | None = None,
    scoring: Scoring | None = None,
) -> ZeroShotClassifier:
    """The classifier of prompts, or of a prompt set, over labels; torch encoder and a fresh text pass unless
    given an encoder and a cache. `scoring` is by default that of the CLIP's training.

    Raises InvalidInput for fewer than two labels (under `sigmoid` one is enough) or duplicates (two equal
    texts make a margin that can never be positive), and as `text_weights`, `scoring_for` and `outcomes`.
    """
    labels, scoring = tuple(labels), scoring_for(clip, scoring)
    check_labels(outcomes(labels, scoring), clip)
    prompts = prompts_for(prompts, labels).to(clip.device)
    if cache is not None:
        weights = cache.get(clip, prompts, labels)
    else:
        with torch.no_grad():
            weights = text_weights(clip, prompts, labels)
    encoder = encoder or TorchImageEncoder(clip)
    return classifier_of(clip, labels, weights, scoring, encoder=encoder, visual=prompts.visual)


@dataclass(frozen=True, eq=False)
class Defended:
    """A classifier behind a bound defense: the chain that is deployed, and the one that is attacked."""

    classifier: ZeroShotClassifier
    defense: Defense

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    @property
    def toll(self) -> Toll:
        return self.defense.toll

    @property
    def features(self) -> FeatureExtractor:
        """Everything up to the text weights."""
        return FeatureExtractor(self.classifier.encoder, self.classifier.visual, self.defense)

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        return self.classifier.judge(self.features(pixels, seeds))
