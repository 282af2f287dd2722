"""Examples to learn on (embeddings of a bank, or pictures), and what the tuned model predicts: text features
of the labels, features and logits of pictures, how often it is right, and signs of collapse.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prompts_store.handcrafted import ENSEMBLE
from robustclip.models import Clip, Prompts, encode_image, encode_patches, text_weights
from robustclip.threat import LEVELS
from robustclip.types import Cost, Features, Logits, Pixels, Progress
from training.data.labelled import LabelledImages
from training.finished import Rows
from training.learning.losses import divergence
from training.learning.objectives.base import Answers, Batch, Examples, Signs, Task
from training.processes import ALONE, Processes

KEPT_BYTES = 2 * 2**30  # pictures beyond this are decoded again for every batch


def bank_examples(bank: Rows, targets: Tensor, clip: Clip) -> Examples:
    """The rows of a bank as examples on the CLIP's device."""
    rows = bank.rows.to(clip.device)

    def take(indices: Tensor) -> Tensor:
        return torch.index_select(rows, 0, indices.to(rows.device))

    return Examples(targets.to(clip.device), take, bank.cost, bank.seconds)


def picture_examples(
    clip: Clip,
    data: LabelledImages,
    indices: Tensor,
    *,
    constants: dict[str, Tensor],
    progress: Progress,
    processes: Processes = ALONE,
) -> Examples:
    """Pictures as examples: decoded once and kept as bytes on the CLIP's device if that takes at most 2 GiB,
    else decoded again for each batch.
    """
    size = clip.image_size
    if len(indices) * 3 * size * size > KEPT_BYTES:

        def pixels(rows: Tensor) -> Pixels:
            return data.pixels(indices[rows.cpu()], clip.preprocessing).to(clip.device)

    else:
        kept = torch.empty(len(indices), 3, size, size, dtype=torch.uint8, device=clip.device)
        for chosen in torch.arange(len(indices)).split(64 * processes.count):
            levels = (
                (data.pixels(indices[processes.own(chosen)], clip.preprocessing) * LEVELS)
                .round()
                .to(clip.device, torch.uint8)
            )
            kept[chosen[0] : chosen[-1] + 1] = processes.whole(levels, len(chosen))
            progress(int(chosen[-1]) + 1, len(indices), "reading pictures")

        def pixels(rows: Tensor) -> Pixels:
            return kept[rows.to(kept.device)].float() / LEVELS

    return Examples(
        data.targets[indices].to(clip.device),
        pixels,
        Cost(),
        0.0,
        pixels=pixels,
        constants=constants,
        divided=True,
    )


WHOLE_LABELS = 256  # of more labels, the states of so many at a time are kept for the backward
PATCHES = "patches"


class Look(NamedTuple):
    """Unit features [B, E] and logits [B, C] of pictures, and what they cost."""

    features: Features
    logits: Logits
    cost: Cost


def label_features(task: Task, prompts: Prompts) -> Features:
    """[C, E] unit text features in one pass, differentiable; a context that labels share is computed once for
    all of them.

    More than 256 labels go in chunks whose states are computed again in the backward, so that a thousand
    labels need the memory of 256.
    """
    if task.precision == "float32":
        return _label_features(task.clip, prompts, task.labels)
    with torch.autocast(task.clip.device.type, torch.bfloat16):
        features = _label_features(task.clip, prompts, task.labels)
    return F.normalize(features.float(), dim=-1)


def share_right(logits: Tensor, targets: Tensor) -> Tensor:
    """[] the share of rows whose highest logit is the target's."""
    return (logits.detach().argmax(dim=1) == targets).float().mean()


def _label_features(clip: Clip, prompts: Prompts, labels: tuple[str, ...]) -> Features:
    text = prompts.text
    if text is None or not text.requires_grad or len(labels) <= WHOLE_LABELS:
        return text_weights(clip, prompts, labels, chunk=WHOLE_LABELS)

    def part(own: Tensor, names: tuple[str, ...]) -> Features:
        parted = Prompts(own, None, prompts.templates, prompts.class_specific)
        return text_weights(clip, parted, names, chunk=WHOLE_LABELS)

    features: list[Tensor] = []
    for start in range(0, len(labels), WHOLE_LABELS):
        rows = slice(start, start + WHOLE_LABELS)
        own = text[rows] if prompts.class_specific else text
        features.append(checkpoint(part, own, labels[rows], use_reentrant=False, preserve_rng_state=False))
    return torch.cat(features)


def handcrafted_features(clip: Clip, labels: tuple[str, ...]) -> Features:
    """[C, E] unit text features of the handcrafted ensemble of templates."""
    with torch.no_grad():
        return text_weights(clip, Prompts(templates=ENSEMBLE), labels)


def look(task: Task, pixels: Pixels, weights: Features, visual: Tensor | None, *, count: int) -> Look:
    """Predictions of the tuned towers for a batch of `count` pictures, of which each process has its share:
    differentiable in prompts only.

    The cost leaves out what `Processes.parts` repeats in the backward.
    """
    return _look(task, encode_image, pixels, weights, visual, count=count)


def look_untouched(
    task: Task, batch: Batch, pixels: Pixels, weights: Features, visual: Tensor | None
) -> Look:
    """`look` at the batch's `pixels`, from the outputs of the stem, in float32, if those were kept. Its cost
    is that of a whole pass even then.
    """
    patches, count = task.examples.constants.get(PATCHES), len(batch.rows)
    if patches is None:
        return look(task, pixels, weights, visual, count=count)
    inputs = patches[task.processes.own(batch.rows).to(patches.device)]
    return _look(task, encode_patches, inputs, weights, visual, count=count)


def _look(
    task: Task,
    encode: Callable[[Clip, Tensor, Tensor | None], Tensor],
    inputs: Tensor,
    weights: Features,
    visual: Tensor | None,
    *,
    count: int,
) -> Look:
    learned = visual is not None and visual.requires_grad and torch.is_grad_enabled()

    def embed(part: Tensor) -> Tensor:
        with torch.autocast(part.device.type, torch.bfloat16, enabled=task.precision == "bf16"):
            embeddings = encode(task.clip, part, visual)
        return embeddings.float()

    with torch.set_grad_enabled(learned):
        features = F.normalize(task.processes.encode(embed, inputs, count), dim=-1)
    return Look(features, task.clip.logit_scale * features @ weights.T, Cost(count, count if learned else 0))


def signs(clean: Logits, attacked: Logits, targets: Tensor) -> Signs:
    """Signs of the collapse in which attacked and clean predictions are the same guess."""
    with torch.no_grad():
        return Signs(float(divergence(clean, attacked).mean()), float(F.cross_entropy(clean, targets)))


def answers(who: str, logits: Logits, targets: Tensor) -> Answers:
    """How a model answers a batch."""
    with torch.no_grad():
        share, expected = (
            float(labels.bincount().max()) / len(targets) for labels in (logits.argmax(dim=1), targets)
        )
        return Answers(who, share, expected, float(F.cross_entropy(logits, targets)))
