"""What a prompt set learned: words near its vectors, the vectors' lengths, and how label features moved.

This is a reading, no proof: learned vectors often lie far from every word (Zhou et al. 2022, arXiv
2109.01134, find few that mean anything). So distances and the token table's own lengths are given, too. Words
are those that are one token of CLIP's tokenizer.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from robustclip.errors import InvalidInput, UnsupportedClip
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip
from robustclip.models.labels import check_labels
from robustclip.models.prompts import HANDCRAFTED_TEMPLATE, Prompts
from robustclip.models.text import native_text

MAX_WORDS = 100
SHOWN_ROWS = 20  # of a table on the terminal
_QUANTILES = (0.05, 0.5, 0.95)
_SAMPLED_WORDS = 1000  # evenly from the table, for the distances between words
TableRow = tuple[str, ...]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Word(_Data):
    """A word near a vector; `distance` is Euclidean, in the token table."""

    word: str
    cosine: float
    distance: float


class Vector(_Data):
    """One learned vector.

    context  index of its context; `label` names the label that the context belongs to, if any
    layer    counts from 1
    by_cosine, by_distance  nearest words, in the text tower's first layer only: deeper vectors replace hidden
             states and those of the image tower stand beside patches, where no word has a position
    """

    tower: str
    context: int
    label: str | None = None
    layer: int
    place: int
    norm: float
    by_cosine: tuple[Word, ...] = ()
    by_distance: tuple[Word, ...] = ()


class LabelShift(_Data):
    """Cosine of a label's text feature with its handcrafted one, and the nearest handcrafted one of any
    label.
    """

    label: str
    similarity: float
    reads_as: str
    reads_as_similarity: float


class Explanation(_Data):
    """The reading of one prompt set.

    table_norms      lengths of the words in the token table: 5th, 50th and 95th percentile
    table_distances  distances from a word to the nearest other word: the same percentiles
    """

    prompt_set: str
    backbone: str
    table_norms: tuple[float, float, float]
    table_distances: tuple[float, float, float]
    vectors: tuple[Vector, ...]
    labels: tuple[LabelShift, ...]

    def readable(self) -> tuple[int, int]:
        """(n, of): n of the vectors with words are nearer to a word than words are to each other (median)."""
        nearest = [vector.by_distance[0].distance for vector in self.vectors if vector.by_distance]
        return sum(distance < self.table_distances[1] for distance in nearest), len(nearest)

    def tables(self, *, every: bool = False) -> list[tuple[TableRow, list[TableRow], str]]:
        """(heads, rows, title) of vectors (nearest to a word first) and of labels (most moved first).

        The first 20 rows each, unless `every`.
        """
        shown = None if every else SHOWN_ROWS
        vectors = [self._vectors_table(shown)] if self.vectors else []
        moved = sorted(self.labels, key=lambda label: label.similarity)[:shown]
        labels = [
            (label.label, f"{label.similarity:.3f}", f"{label.reads_as} {label.reads_as_similarity:.3f}")
            for label in moved
        ]
        title = (
            f"cosine of text features with {HANDCRAFTED_TEMPLATE!r}, {len(moved)} of {len(self.labels)} "
            f"labels, lowest first"
        )
        return [*vectors, (("label", "similarity", "nearest handcrafted label"), labels, title)]

    def summary(self) -> tuple[str, ...]:
        """The vectors' lengths and distances compared with those of words, in sentences; none without
        vectors.
        """
        low, middle, high = self.table_norms
        near, of = self.readable()
        lengths = (
            f"Lengths of words in {self.backbone}'s table: {middle:.3f} (90 % between {low:.3f} and "
            f"{high:.3f})."
        )
        distances = (
            f"{near} of {of} vectors in the text tower's first layer are nearer to a word than "
            f"words to each other ({self.table_distances[1]:.2f})."
        )
        return ((lengths, distances) if of else (lengths,)) if self.vectors else ()

    def _vectors_table(self, shown: int | None) -> tuple[TableRow, list[TableRow], str]:
        """Vectors without words come last, in their order."""
        nearest_first = sorted(
            self.vectors,
            key=lambda vector: vector.by_distance[0].distance if vector.by_distance else math.inf,
        )[:shown]
        labelled = any(vector.label is not None for vector in self.vectors)
        rows = [
            (
                vector.tower,
                (vector.label or "") if labelled else str(vector.context),
                *(str(part) for part in (vector.layer, vector.place)),
                f"{vector.norm:.3f}",
                ", ".join(f"{near.word} {near.cosine:.2f}" for near in vector.by_cosine),
                ", ".join(f"{near.word} {near.distance:.2f}" for near in vector.by_distance),
            )
            for vector in nearest_first
        ]
        heads = (
            "tower",
            "label" if labelled else "context",
            "layer",
            "vector",
            "length",
            "nearest by cosine",
            "nearest by distance",
        )
        order = ", nearest to a word first" if self.readable()[1] else ""
        return heads, rows, f"{self.prompt_set}, {len(rows)} of {len(self.vectors)} vectors{order}"


def explain(
    clip: Clip,
    prompts: Prompts,
    *,
    name: str,
    learned_on: tuple[str, ...] = (),
    labels: Sequence[str] | None = None,
    words: int = 5,
) -> Explanation:
    """Read the prompts of the set `name`.

    labels      default: those they were `learned_on`; class-specific prompts have features for these only
    words       how many nearest words to give

    Raises InvalidInput for no labels or a wrong count of words, UnsupportedClip for a vocabulary that is not
    CLIP's.
    """
    if not 1 <= words <= MAX_WORDS:
        raise InvalidInput(f"expected 1 to {MAX_WORDS} words, found {words}.", field="--words")
    prompts = prompts.to(clip.device)
    chosen = learned_on if labels is None else tuple(labels)
    if not chosen:
        raise InvalidInput(f"{name} names no labels.", field="--labels", help="Name some: --labels cat,dog.")
    if prompts.class_specific and chosen != learned_on:
        raise InvalidInput(
            f"{name} has a context for each of its own labels alone.",
            field="--labels",
            help="Leave them out.",
        )
    check_labels(chosen, clip)
    table, names = _word_table(clip)
    return Explanation(
        prompt_set=name,
        backbone=clip.arch,
        table_norms=_percentiles(table.norm(dim=1)),
        table_distances=_percentiles(_to_the_nearest(table)),
        vectors=(
            *_text_vectors(
                prompts.text, table, names, words, labels=chosen if prompts.class_specific else None
            ),
            *_visual_vectors(prompts.visual),
        ),
        labels=_labels(clip, prompts, chosen),
    )


def _word_table(clip: Clip) -> tuple[Tensor, list[str]]:
    """[V, W] embeddings of the printable ASCII words, and the words."""
    text = native_text(clip.model)
    if text is None:
        raise UnsupportedClip(f"{clip.arch}: {clip.capabilities.text_prompts}", field="--backbone")
    words = clip.tokenize.words()
    readable = {word: index for word, index in words.items() if word.isascii() and word.isprintable()}
    table = text.tokens.weight.detach().float()
    if len(table) <= max(readable.values()):
        raise UnsupportedClip(
            f"{clip.arch} has {len(table)} tokens and not its tokenizer's vocabulary.", field="--backbone"
        )
    return table[torch.tensor(list(readable.values()), device=table.device)], list(readable)


def _to_the_nearest(table: Tensor) -> Tensor:
    """[S] distances from sampled words to the nearest other word."""
    rows = (
        torch.linspace(0, len(table) - 1, min(_SAMPLED_WORDS, len(table)), device=table.device).round().long()
    )
    return torch.cdist(table[rows], table).scatter_(1, rows[:, None], torch.inf).amin(dim=1)


def _percentiles(values: Tensor) -> tuple[float, float, float]:
    low, middle, high = values.quantile(torch.tensor(_QUANTILES, device=values.device)).tolist()
    return low, middle, high


def _text_vectors(
    text: Tensor | None, table: Tensor, names: list[str], words: int, *, labels: tuple[str, ...] | None
) -> list[Vector]:
    """`labels`: whose contexts these are, in order; None if no context belongs to a label."""
    if text is None:
        return []
    contexts = (text if text.ndim == 4 else text[None]).detach().float()  # [M, D, N, W]
    first = contexts[:, 0].flatten(0, 1)
    cosines = F.normalize(first, dim=1) @ F.normalize(table, dim=1).T
    distances = torch.cdist(first, table)

    def named(row: int, indices: Tensor) -> tuple[Word, ...]:
        return tuple(
            Word(word=names[i], cosine=float(cosines[row, i]), distance=float(distances[row, i]))
            for i in indices.tolist()
        )

    vectors: list[Vector] = []
    for context, layer, place in _places(contexts):
        row = context * contexts.shape[2] + place
        vectors.append(
            Vector(
                tower="text",
                context=context,
                label=labels[context] if labels else None,
                layer=layer + 1,
                place=place,
                norm=float(contexts[context, layer, place].norm()),
                by_cosine=() if layer else named(row, cosines[row].topk(words).indices),
                by_distance=() if layer else named(row, distances[row].topk(words, largest=False).indices),
            )
        )
    return vectors


def _visual_vectors(visual: Tensor | None) -> list[Vector]:
    if visual is None:
        return []
    norms = visual.detach().float()[None].norm(dim=-1)
    return [
        Vector(tower="image", context=0, layer=layer + 1, place=place, norm=float(norms[0, layer, place]))
        for _, layer, place in _places(norms)
    ]


def _places(contexts: Tensor) -> list[tuple[int, int, int]]:
    """(context, layer, place) of each vector of [M, D, N, ...]."""
    many, deep, long = (range(count) for count in contexts.shape[:3])
    return list(itertools.product(many, deep, long))


def _labels(clip: Clip, prompts: Prompts, labels: tuple[str, ...]) -> tuple[LabelShift, ...]:
    with torch.no_grad():
        learned, handcrafted = text_weights(clip, prompts, labels), text_weights(clip, Prompts(), labels)
    similarity = learned @ handcrafted.T
    best, nearest = similarity.max(dim=1)
    return tuple(
        LabelShift(
            label=label,
            similarity=float(similarity[row, row]),
            reads_as=labels[int(nearest[row])],
            reads_as_similarity=float(best[row]),
        )
        for row, label in enumerate(labels)
    )
