"""What the engineering of training saves, each against what it replaces, in one run: `robustclip bench
training`.

capt   a step of CAPT against the straightforward loop: the text tower, as open_clip runs it, looks again in
       every step of the attack at every label's whole sequence, at the length that the longest needs, nothing
       padded, and the frozen CLIP is asked about every batch; clean and attacked pictures are looked at
       behind one text pass. The loop is timed in float32 and in the precision of our attack, we as we are and
       with towers in bfloat16 (`--precision bf16` of train): the same step. What that saves is the text's:
       few vectors, many pictures or a small text tower leave little to save. `warm` is our step with one
       attack step from where the picture's last attack ended (`--objective.warm_start true --objective.steps
       1`) instead of three from a random point; what either attack adds to the loss stands beside it, of
       `warm` after all those visits, of prompts that stand still.
advpt  an epoch of AdvPT's tuning on a bank that is there against the same epoch of adversarial training of
       the image tower (TeCoA, AdamW) by PGD-10 and PGD-2, and the making of that bank beside them.

Steps are taken in turns, so that other work on the machine slows all alike; times are medians of steps, an
epoch is its steps times that. Pictures are noise: what they show costs nothing. Nothing is asserted: machines
differ.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import training
from robustclip import DEFAULT_BACKBONE
from robustclip.models.classifier import text_weights
from robustclip.models.clip import Clip, load_clip
from robustclip.models.prompts import Prompts
from robustclip.models.towers import encode_image, has_stem, patch_tokens
from robustclip.seeds import draw_seeds
from robustclip.threat import radius_text
from robustclip.types import Cost, Pixels
from training.commands import at_least_one, bar
from training.data.classes import read_classes
from training.foundry.hardening.attack import Strength
from training.foundry.hardening.tower import ImageTower
from training.learning.losses import Reference, TowerPrecision, climb, drawn_start, family, label_loss
from training.learning.objectives.advpt import AdvPT
from training.learning.objectives.apd import TEMPLATE
from training.learning.objectives.base import Batch, Examples, Task
from training.learning.objectives.capt import CAPT, FROZEN
from training.learning.objectives.contexts import Parameters
from training.learning.objectives.pictures import opponent_of
from training.learning.objectives.predictions import PATCHES
from training.threats.bank import shift_embeddings

EPS = 1 / 255
LABELS = Path(training.__file__).parent / "data" / "class_names" / "Caltech101.txt"
Step = Callable[[], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Time training's shortcuts against what they replace."""
    parser = argparse.ArgumentParser(
        prog="robustclip bench training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        help="an embedded CLIP, or an architecture (default: %(default)s)",
    )
    parser.add_argument("--only", choices=("capt", "advpt"), help="one of the two (default: both)")
    parser.add_argument(
        "--labels", type=at_least_one, default=100, help="of Caltech-101's names (default: %(default)s)"
    )
    parser.add_argument(
        "--vectors",
        type=at_least_one,
        help="of capt, a layer and tower (default: as many as capt takes itself)",
    )
    parser.add_argument(
        "--batch", type=at_least_one, default=32, help="pictures a step (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", type=at_least_one, default=5, help="steps of capt, each way (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=at_least_one,
        default=200,
        help="steps of tuning and of adversarial training (default: %(default)s)",
    )
    parser.add_argument(
        "--pictures",
        type=at_least_one,
        default=1616,
        help="of an epoch, extrapolated: 16 shots of 101 (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=at_least_one, default=100, help="that share one bank (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    clip = load_clip(options.backbone)
    labels = tuple(name.replace("_", " ") for name in read_classes(LABELS))[: options.labels]
    facts = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    asked = {"backbone": options.backbone, "labels": len(labels), "batch": options.batch}
    results: dict[str, object] = {}
    if options.only != "advpt":
        own = {} if options.vectors is None else {"vectors": options.vectors, "words": ""}
        results["capt_step"] = capt_step(
            clip, labels, CAPT.model_validate({"eps": EPS, **own}), batch=options.batch, runs=options.runs
        )
    if options.only != "capt":
        results["advpt_epoch"] = advpt_epoch(
            clip,
            labels,
            batch=options.batch,
            steps=options.steps,
            pictures=options.pictures,
            epochs=options.epochs,
        )
    print(json.dumps({**facts, **asked, "results": results}, indent=2))
    return 0


def capt_step(
    clip: Clip, labels: tuple[str, ...], objective: CAPT, *, batch: int, runs: int
) -> dict[str, object]:
    """Seconds of one step, forward and backward, ours and the loop's; ratios above 1 are in our favour."""
    task, parameters, given = capt_task(clip, labels, objective, batch=batch)
    warm = objective.model_copy(update={"warm_start": True, "steps": 1})
    revisit = replace(task, memory=warm.new_memory(task.examples, parameters))

    def backward(loss: Callable[[], Tensor]) -> Step:
        def step() -> None:
            torch.autograd.grad(loss(), list(parameters.values()))

        return step

    def ours(method: CAPT, task: Task, precision: TowerPrecision) -> Step:
        exact = replace(task, precision=precision)
        return backward(
            lambda: torch.stack(list(method.loss(exact, parameters, given).losses.values())).sum()
        )

    def loop(half: bool) -> Step:
        return backward(lambda: straightforward(objective, task, parameters, given, half=half))

    mine = {
        "ours": ours(objective, task, "float32"),
        "ours_bf16": ours(objective, task, "bf16"),
        "warm": ours(warm, revisit, "float32"),
        "warm_bf16": ours(warm, revisit, "bf16"),
    }
    loops = {"loop_float32": loop(False), "loop_bf16_attack": loop(True)}
    seconds = timed({**mine, **loops}, runs)
    ratios = {
        f"{loop}_over_{name}": round(seconds[loop] / seconds[name], 2)
        for loop, name in itertools.product(loops, mine)
    }
    added = {
        "ours": added_loss(objective, task, parameters, given),
        "warm": added_loss(warm, revisit, parameters, given),
    }
    return {
        "runs": runs,
        "vectors": objective.vectors,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        **ratios,
        "added_loss": added,
    }


def added_loss(objective: CAPT, task: Task, parameters: Parameters, batch: Batch) -> float:
    """How much the training attack adds to the mean cross-entropy of the pictures, by the prompts as they
    are.
    """
    with torch.no_grad():
        prompts = objective.fold(task.clip, parameters)
        weights = text_weights(task.clip, prompts, task.labels)
    opponent = opponent_of(objective, task.clip, weights, prompts)
    attacked, _ = objective.perturb(task, batch, batch.inputs, opponent)
    loss = label_loss(opponent, batch.targets)
    with torch.no_grad():
        return round(float((loss(attacked) - loss(batch.inputs)).mean()), 4)


def capt_task(
    clip: Clip, labels: tuple[str, ...], objective: CAPT, *, batch: int
) -> tuple[Task, Parameters, Batch]:
    """A step of CAPT on noise, prompts as they start."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(batch, 3, clip.image_size, clip.image_size, generator=generator)
    targets = torch.randint(len(labels), (batch,), generator=generator)

    def take(rows: Tensor) -> Pixels:
        return pixels[rows]

    with torch.no_grad():
        template = text_weights(clip, Prompts(), labels)
        kept = {TEMPLATE: template, FROZEN: frozen_logits(clip, pixels, template)}
        kept |= {PATCHES: patch_tokens(clip, pixels)} if has_stem(clip) else {}
    examples = Examples(targets, take, Cost(), 0.0, pixels=take, constants=kept, divided=True)
    parameters = objective.new_parameters(clip, labels, 0)
    for tensor in parameters.values():
        tensor.requires_grad_()
    rows = torch.arange(batch)
    return (
        Task(clip, labels, examples, {}),
        parameters,
        Batch(pixels, targets, draw_seeds(0, batch), rows, 1.0),
    )


def straightforward(
    objective: CAPT, task: Task, parameters: Parameters, batch: Batch, *, half: bool
) -> Tensor:
    """[] the loss of a step as the formula reads, label by label and step by step: what `CAPT.loss`
    computes.
    """
    clip, labels, targets = task.clip, task.labels, batch.targets
    prompts = objective.fold(clip, parameters)

    def logits(pixels: Pixels, texts: Tensor) -> Tensor:
        return clip.logit_scale * F.normalize(encode_image(clip, pixels, prompts.visual), dim=-1) @ texts.T

    def attack_loss(pixels: Pixels) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = logits(pixels, whole_texts(clip, prompts, labels))
        return F.cross_entropy(found.float(), targets, reduction="none")

    texts = whole_texts(clip, prompts, labels)
    clean = logits(batch.inputs, texts)
    start = drawn_start(batch.inputs, batch.seeds, objective.eps)
    pixels, _ = climb(
        attack_loss,
        batch.inputs,
        start,
        eps=objective.eps,
        step=objective.step_length(),
        steps=objective.steps,
    )
    attacked = logits(pixels, texts)
    with torch.no_grad():
        frozen = frozen_logits(clip, batch.inputs, task.examples.constants[TEMPLATE])
    alpha = objective.balance(task, batch, clean, frozen)
    references = [Reference(clean.detach(), 1 - alpha), Reference(frozen, alpha)]
    return torch.stack(
        list(
            family(
                targets, clean=clean, attacked=attacked, references=references, a=1.0, c=objective.consistency
            ).values()
        )
    ).sum()


def frozen_logits(clip: Clip, pixels: Pixels, template: Tensor) -> Tensor:
    """[B, C] what the CLIP without prompts says; template: [C, E] unit text features of its words."""
    return clip.logit_scale * F.normalize(encode_image(clip, pixels), dim=-1) @ template.T


def whole_texts(clip: Clip, prompts: Prompts, labels: tuple[str, ...]) -> Tensor:
    """[C, E] unit text features of one template behind a shared context [D, N, W], every sequence whole and
    through open_clip's own blocks.
    """
    assert prompts.text is not None
    (template,), model, number = prompts.templates, clip.model, prompts.text.shape[1]
    tokens = clip.tokenize([template.replace("{}", label) for label in labels])
    ends = tokens.argmax(dim=-1)
    length = int(ends.max()) + 1 + number
    embedded = model.token_embedding(tokens[:, : length - number])
    contexts = prompts.text.expand(len(labels), -1, -1, -1)
    states = (
        torch.cat([embedded[:, :1], contexts[:, 0], embedded[:, 1:]], dim=1)
        + model.positional_embedding[:length]
    )
    mask = torch.full((length, length), -torch.inf).triu(1)
    for depth, block in enumerate(model.transformer.resblocks):
        if 0 < depth < contexts.shape[1]:
            states = torch.cat([states[:, :1], contexts[:, depth], states[:, 1 + number :]], dim=1)
        states = block(states, attn_mask=mask)
    read = model.ln_final(states[torch.arange(len(labels)), ends + number])
    return F.normalize(read @ model.text_projection, dim=-1)


def advpt_epoch(
    clip: Clip, labels: tuple[str, ...], *, batch: int, steps: int, pictures: int, epochs: int
) -> dict[str, object]:
    """Seconds of an epoch each way and of the bank; ratios without the bank, and with its cost spread over
    `epochs`.
    """
    ways = {"tuning": tuning_step(clip, labels, batch=batch)}
    ways |= {
        f"pgd_{number}": adversarial_step(clip, labels, batch=batch, attack_steps=number)
        for number in (10, 2)
    }
    with bar(quiet=not sys.stderr.isatty()) as progress:
        seconds = timed(
            ways,
            steps,
            on_run=lambda done: progress(done, steps, "steps of tuning and of adversarial training"),
        )
    bank = timed({"bank": bank_step(clip, batch=batch)}, max(2, math.ceil(steps / 50)))["bank"]
    count = math.ceil(pictures / batch)
    whole = {name: value * count for name, value in seconds.items()}
    shared = whole["tuning"] + bank * count / epochs
    ratios = {
        name: {
            "epoch": round(whole[name] / whole["tuning"], 1),
            f"bank_over_{epochs}_epochs": round(whole[name] / shared, 1),
        }
        for name in ways
    }
    return {
        "steps": steps,
        "pictures": pictures,
        "eps": radius_text(EPS),
        "epoch_seconds": {name: round(value, 2) for name, value in whole.items()},
        "bank_seconds": round(bank * count, 2),
        "ratios": {name: own for name, own in ratios.items() if name != "tuning"},
    }


def tuning_step(clip: Clip, labels: tuple[str, ...], *, batch: int) -> Step:
    """One step of AdvPT on stored embeddings: text tower, forward and backward, and SGD."""
    objective = AdvPT.model_validate({"eps": EPS, "batch": batch})
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(batch, 1, clip.embed_dim, generator=generator)
    targets = torch.randint(len(labels), (batch,), generator=generator)
    task = Task(clip, labels, Examples(targets, lambda rows: bank[rows], Cost(), 0.0), {})
    parameters = objective.new_parameters(clip, labels, 0)
    for tensor in parameters.values():
        tensor.requires_grad_()
    optimizer = torch.optim.SGD(
        parameters.values(), lr=objective.learning_rate, momentum=0.9, weight_decay=5e-4
    )
    given = Batch(bank, targets, draw_seeds(0, batch), torch.arange(batch), 1.0)

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(objective.loss(task, parameters, given).losses.values())).sum().backward()
        optimizer.step()

    return step


def adversarial_step(clip: Clip, labels: tuple[str, ...], *, batch: int, attack_steps: int) -> Step:
    """One step of TeCoA as `robustclip harden` takes it, in bfloat16: attack the tower as it is, learn from
    the attacked pictures.
    """
    tower = ImageTower(clip, bf16=True).frozen_copy()
    target = tower.frozen_view()
    tower.visual.requires_grad_(True)
    optimizer = torch.optim.AdamW(tower.visual.parameters(), lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(batch, 3, clip.image_size, clip.image_size, generator=generator)
    targets = torch.randint(len(labels), (batch,), generator=generator)
    with torch.no_grad():
        weights = text_weights(clip, Prompts(), labels)

    def loss(of: ImageTower, seen: Pixels) -> Tensor:
        return F.cross_entropy(
            clip.logit_scale.detach() * F.normalize(of(seen), dim=-1) @ weights.T, targets, reduction="none"
        )

    def step() -> None:
        noise = 2 * torch.rand(pixels.shape, generator=generator) - 1
        attacked = Strength.of(EPS, attack_steps).attack(lambda seen: loss(target, seen), pixels, noise)
        optimizer.zero_grad()
        loss(tower, attacked).mean().backward()
        optimizer.step()

    return step


def bank_step(clip: Clip, *, batch: int) -> Step:
    """A batch of AdvPT's bank: attacked by PGD-10, and embedded."""
    attack = AdvPT.model_validate({"eps": EPS}).attack()
    pixels = torch.rand(
        batch, 3, clip.image_size, clip.image_size, generator=torch.Generator().manual_seed(0)
    )
    seeds = draw_seeds(0, batch)

    def step() -> None:
        attacked = shift_embeddings(clip, pixels, attack, seeds)
        with torch.no_grad():
            encode_image(clip, attacked.pixels)

    return step


def timed(
    ways: Mapping[str, Step], runs: int, *, on_run: Callable[[int], None] = lambda done: None
) -> dict[str, float]:
    """The median seconds of each way, taken in turns; a first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, step in ways.items():
            began = time.perf_counter()
            step()
            if run:
                seconds[name].append(time.perf_counter() - began)
        on_run(run)
    return {name: statistics.median(own) for name, own in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
