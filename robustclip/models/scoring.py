"""From logits to scores and to a decision: a softmax over the labels, or a sigmoid for each of them.

A CLIP with a logit bias was trained with a sigmoid for each pair of picture and text (SigLIP; Zhai et al.
2023, arXiv 2303.15343, section 3.2): each label has a probability of its own, and all may be low. So the
decision is the label of the highest probability if that is at least 1/2, else that none of the labels fits.

Since sigmoid(0) = 1/2, this is the argmax over the labels' logits and one more outcome with the logit 0. So a
sigmoid classifier gives this outcome as a last column, and all that is defined by logits holds as it is:

margin          of label y against the other outcomes: below 0 as long as y is the answer. It becomes the
                answer no more where another label overtakes it, or where its probability falls below 1/2
cross-entropy   softmax over the outcomes; for a single label that is the binary -log sigmoid(z)
votes           a noisy copy may vote for none of the labels, and a certificate may be about that
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.types import Logits

Scoring: TypeAlias = Literal["softmax", "sigmoid"]

NONE = "none of these"  # the outcome of a sigmoid decision where no label's probability reaches 1/2


def logit_bias(clip: Clip) -> Tensor | None:
    """[] what a CLIP that was trained with a sigmoid adds to its logits; None for any other."""
    bias = getattr(clip.model, "logit_bias", None)
    return None if bias is None else bias.reshape(())


def trained_with(clip: Clip) -> Scoring:
    """The scoring of the loss that a CLIP was trained with."""
    return "softmax" if logit_bias(clip) is None else "sigmoid"


def scoring_for(clip: Clip, requested: Scoring | None, *, field: str = "scoring") -> Scoring:
    """The requested scoring, by default the one of the CLIP's training.

    Raises InvalidInput for `sigmoid` without a logit bias: the cosine of any picture and text is above 0 in
    such a CLIP, so that the sigmoid would say yes to every label.
    """
    if requested == "sigmoid" and logit_bias(clip) is None:
        raise InvalidInput(
            f"expected softmax: {clip.arch} was trained with a softmax and has no logit bias, without which "
            f"a sigmoid says yes to every label.",
            field=field,
            help="Leave it out, or use a CLIP that was trained with a sigmoid, such as a SigLIP.",
        )
    return requested or trained_with(clip)


def outcomes(labels: Sequence[str], scoring: Scoring) -> tuple[str, ...]:
    """What a decision between labels may say: under `sigmoid` also `NONE`, as the last, so that a single
    label is enough for a decision.

    Raises InvalidInput then for no label, and for one that reads like `NONE`.
    """
    if scoring == "softmax":
        return tuple(labels)
    if not labels:
        raise InvalidInput("expected at least 1 label, found 0.", field="labels")
    for index, label in enumerate(labels):
        if label.casefold() == NONE:
            raise InvalidInput(
                f"{label!r} is what a sigmoid decision says where no label fits.",
                field=f"labels/{index}",
                help="Leave it out.",
            )
    return (*labels, NONE)


def with_none(logits: Logits) -> Logits:
    """[B, C + 1] logits of the labels with that of `NONE`, which is 0."""
    return torch.cat([logits, logits.new_zeros(len(logits), 1)], dim=1)


def scores_of(logits: Logits, scoring: Scoring) -> Tensor:
    """[..., O] the probability of each outcome, from their logits.

    Under `sigmoid` they don't sum to 1, and that of `NONE` is 1 less the highest of a label.
    """
    if scoring == "softmax":
        return logits.softmax(dim=-1)
    labels = logits[..., :-1]
    return torch.cat([labels, -labels.amax(dim=-1, keepdim=True)], dim=-1).sigmoid()
