"""The ensemble beside pyautoattack's standard version, on the same pictures in one run: how many stand, and
how many gradients each of them asked for.

    PYTHONPATH=tests python tests/benchmarks/bench_attacks.py --backbone mini-robust --prompt-set handcrafted
    --data DIR --n 200 --eps 2/255

Prints one JSON object. Only pictures that are classified rightly are attacked. `live` times one picture as a
probe would attack it: the nearest to the boundary that falls, and one that stands. Nothing here is asserted:
machines differ, and that is the point of running it on yours.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from outside_judge import Counted, standing
from torch import Tensor

from robustclip.attacks.ensemble import Ensemble, Preset
from robustclip.attacks.events import Bracket, CascadeWitness, Done, Event, Meter
from robustclip.attacks.minimal import Minimal
from robustclip.models.classifier import ZeroShotClassifier, zero_shot
from robustclip.models.clip import load_clip
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, BallSpec, Linf, parse_radius, radius_text
from robustclip.types import Cost, Pixels
from training.commands import default_store
from training.data.sampling import balanced_subset, open_split
from training.measuring.evaluation.question import load_prompts

FAR = {"linf": Linf(radius=64 / 255), "l2": L2(radius=20)}  # as far as a bracket looks


def main() -> None:
    """Measure, print."""
    options = _options()
    clip = load_clip(options.backbone, device=options.device)
    data = open_split(options.data, options.split)
    asked = load_prompts(options.prompt_set, clip, data.labels, options.store)
    classifier = zero_shot(clip, asked.prompts, data.labels)
    chosen = balanced_subset(data, options.n, options.seed)
    pixels, targets = (
        data.pixels(chosen, clip.image_size).to(clip.device),
        data.targets[chosen].to(clip.device),
    )
    seeds = draw_seeds(options.seed, len(chosen))
    with torch.no_grad():
        right = (
            torch.cat(
                [
                    classifier(part, part_seeds).argmax(dim=1)
                    for part, part_seeds in zip(pixels.split(64), seeds.split(64), strict=True)
                ]
            )
            == targets
        )
    pixels, targets, seeds = pixels[right], targets[right], seeds[right.cpu()]
    ball: BallSpec = Linf(radius=options.eps) if options.norm == "linf" else L2(radius=options.eps)
    results: dict[str, Any] = {"n": len(chosen), "right_clean": len(pixels)}
    ours = _ours(classifier, pixels, targets, seeds, ball, options.preset, options.precision, options.batch)
    results["ours"] = ours[1]
    if not options.without_judge:
        began = time.perf_counter()
        left, cost = standing(
            classifier, pixels, targets, norm=ball.kind, radius=ball.radius, batch=options.batch
        )
        results["judge"] = _line(left, cost, began)
        results["only_ours_stands"] = int((ours[0] & ~left).sum())
        results["only_judges_stands"] = int((left & ~ours[0]).sum())
        results["gradients_ours_over_judge"] = round(ours[1]["gradients"] / max(cost.backward, 1), 3)
    if options.live:
        results["live"] = _live(classifier, pixels, targets, seeds, ball, ours[0])
    about = {
        "backbone": options.backbone,
        "prompt_set": asked.name,
        "data": options.data.name,
        "norm": ball.kind,
        "eps": radius_text(ball.radius),
    }
    machine = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(
        json.dumps(
            {
                **machine,
                **about,
                "preset": options.preset,
                "precision": options.precision,
                "seed": options.seed,
                **results,
            },
            indent=2,
        )
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--prompt-set", default="handcrafted")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--eps", type=parse_radius, default=2 / 255)
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--preset", choices=["quick", "standard", "thorough"], default="standard")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--store", type=Path, default=default_store())
    parser.add_argument("--without-judge", action="store_true", help="our side only")
    parser.add_argument("--live", action="store_true", help="also time single pictures")
    return parser.parse_args()


def _ours(
    classifier: ZeroShotClassifier,
    pixels: Pixels,
    targets: Tensor,
    seeds: Tensor,
    ball: BallSpec,
    preset: Preset,
    precision: Any,
    batch: int,
) -> tuple[Tensor, dict[str, Any]]:
    """[B] which pictures the ensemble leaves standing, judged anew, and what that took."""
    counted, began = Counted(classifier), time.perf_counter()
    attack = Ensemble(ball=ball, preset=preset, precision=precision)
    parts = zip(pixels.split(batch), targets.split(batch), seeds.split(batch), strict=True)
    attacked = torch.cat(
        [attack(label_score("margin", counted, target), part, seed).pixels for part, target, seed in parts]
    )
    cost = counted.cost
    with torch.no_grad():
        left = torch.cat([classifier(part, seeds).argmax(dim=1) for part in attacked.split(batch)]) == targets
    return left, _line(left, cost, began)


def _line(left: Tensor, cost: Cost, began: float) -> dict[str, Any]:
    seconds = round(time.perf_counter() - began, 1)
    return {
        "standing": int(left.sum()),
        "gradients": cost.backward,
        "forwards": cost.forward,
        "charged": cost.charged,
        "seconds": seconds,
    }


def _live(
    classifier: ZeroShotClassifier,
    pixels: Pixels,
    targets: Tensor,
    seeds: Tensor,
    ball: BallSpec,
    left: Tensor,
) -> dict[str, Any]:
    """Seconds and passes of one picture that falls and of one that stands, by preset, and of a bracket."""
    found: dict[str, Any] = {}
    for kind, rows in (("falls", (~left).nonzero()), ("stands", left.nonzero())):
        if not len(rows):
            continue
        row = rows[:1, 0]
        score, seed = label_score("margin", classifier, targets[row]), seeds[row.cpu()]
        for preset in ("quick", "standard"):
            attack = Ensemble(ball=ball, preset=preset, together=9, widen=8)
            found[f"{kind}_{preset}"] = _timed(attack.events(score, pixels[row], seed, meter=Meter()))
        found[f"{kind}_bracket"] = _timed(
            Minimal(ball=FAR[ball.kind]).events(score, pixels[row], seed, meter=Meter())
        )
    return found


def _timed(events: Iterator[Event]) -> dict[str, Any]:
    began, timed = time.perf_counter(), dict[str, Any]()
    for event in events:
        if isinstance(event, CascadeWitness):
            timed.setdefault("first_witness_seconds", round(time.perf_counter() - began, 2))
        if isinstance(event, Bracket):
            timed["bracket_levels"] = [
                round(255 * event.unbroken, 3),
                None if event.broken is None else round(255 * event.broken, 3),
            ]
        if isinstance(event, Done):
            timed |= {"seconds": round(time.perf_counter() - began, 2), "charged": event.cost.charged}
    return timed


if __name__ == "__main__":
    main()
