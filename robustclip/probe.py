"""Attack one decision of the deployed chain and say what came of it.

The victim is exactly what `/classify` serves: prompt set, labels, defense, encoder. Gradients run in float32 torch; every candidate is judged
again in a fresh forward of the serving path, as float pixels and from its PNG. A verdict is the worst case over attacks, never an average.
"""

import base64
import hashlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from robustclip import sanity
from robustclip.attacks import AnyAttack
from robustclip.attacks.pgd import PGD
from robustclip.classifier import Defended, TorchImageEncoder, check_labels
from robustclip.defenses import bind_chain
from robustclip.errors import InvalidInput, ProbeUnavailable
from robustclip.images import load_pixels, pixels_to_png
from robustclip.losses import untargeted_margin
from robustclip.measure import wilson
from robustclip.probe_options import ProbeOptions, boundless, modes_of
from robustclip.report import (
    AttackRecord,
    Decision,
    Gap,
    Heat,
    InputPart,
    Knowledge,
    ProbeReport,
    Rate,
    Trace,
)
from robustclip.sanity import Diagnostic
from robustclip.scores import label_score
from robustclip.seeds import derive, draw_seeds
from robustclip.types import Attacked, Classifier, Cost, Pixels, Score, Seeds
from robustclip.verdict import reach_verdict
from robustclip.victim import Victim, describe_victim
from robustclip.wrappers import averaged

Guard: TypeAlias = Callable[[Score], Score]
Share: TypeAlias = Callable[[Classifier], Classifier]


def probe(
    victim: Victim,
    pixels: Tensor,
    options: ProbeOptions,
    *,
    guard: Guard = lambda score: score,
    share: Share = lambda classifier: classifier,
) -> ProbeReport:
    """Attack the victim's decision about one picture [3, S, S]; deterministic given `options.seed`.

    `guard` wraps every score that is attacked and `share` every classifier that is only asked; no pass goes past them (a service takes its device
    lock and its deadline there). Raises InvalidInput for labels that are not the victim's, ProbeUnavailable when the defense offers no gradient.
    """
    return _Probe(victim, pixels[None], options, guard, share).report()


class _Probe:
    def __init__(self, victim: Victim, pixels: Pixels, options: ProbeOptions, guard: Guard, share: Share) -> None:
        check_labels(victim.labels, victim.clip)
        self.victim, self.pixels, self.options, self.guard = victim, pixels, options, guard
        self.modes = modes_of(victim, options)
        reference = TorchImageEncoder(victim.clip)
        self.chain = bind_chain(victim.defense, reference)
        if self.chain.gradient == "none" and "adaptive" in self.modes:
            raise ProbeUnavailable("this defense offers no gradient.", field="defenses", help="Ask for the static mode only.")
        self.undefended = victim.classifier(reference)
        self.defended = Defended(self.undefended, self.chain)
        self.asked = share(self.defended)
        self.served = share(Defended(victim.classifier(victim.serving), bind_chain(victim.defense, victim.serving)))
        self.seeds: Seeds = draw_seeds(options.seed, 1)
        self.cost = Cost()
        clean = self._mean_logits(pixels, "clean")
        self.clean_index = int(clean.argmax())
        self.truth = self._index(options.true_label, "true_label") if options.true_label is not None else self.clean_index
        self.goal = self._index(options.target_label, "target_label") if options.target_label is not None else None
        if self.goal == self.truth:
            raise InvalidInput(f"{options.target_label!r} is already the label to leave.", field="target_label", help="Choose another label.")
        self.clean = self._decision(clean)

    def report(self) -> ProbeReport:
        records = [self._attack(attack, mode) for attack in self.options.attacks for mode in self.modes]
        successes: dict[Knowledge, bool] = {
            mode: any(record.success or record.success_8bit for record in records if record.knowledge == mode) for mode in self.modes
        }
        diagnostics = self._diagnostics(successes)
        gap = None
        if self.victim.defense and len(successes) == 2:
            gap = Gap(
                static_success=successes["static"],
                adaptive_success=successes["adaptive"],
                illusory=successes["adaptive"] and not successes["static"],
            )
        question = self._question()
        return ProbeReport(
            code_version=version("robustclip"),
            seed=self.options.seed,
            device=str(self.victim.clip.device),
            victim=describe_victim(self.victim),
            input=question,
            attacks=tuple(records),
            gap=gap,
            diagnostics=tuple(diagnostics),
            verdict=reach_verdict(question, records, diagnostics, balls=[attack.ball for attack in self.options.attacks], charged=self.cost.charged),
            forward=self.cost.forward,
            backward=self.cost.backward,
            charged=self.cost.charged,
        )

    def _question(self) -> InputPart:
        goal: Literal["change_label", "change_decision", "reach_target"]
        goal = "reach_target" if self.goal is not None else "change_decision" if self.options.true_label is None else "change_label"
        return InputPart(
            sha256=hashlib.sha256((self.pixels * 255).round().to(torch.uint8).cpu().numpy().tobytes()).hexdigest(),
            resolution=(self.pixels.shape[-2], self.pixels.shape[-1]),
            true_label=self.victim.labels[self.truth],
            target_label=self.options.target_label,
            goal=goal,
            clean=self.clean,
        )

    def _attack(self, attack: AnyAttack, mode: Knowledge) -> AttackRecord:
        eot = self._eot(mode)
        if isinstance(attack, PGD):
            # Who stops at the first success stops at the narrowest: it transfers worst, survives rounding and other encoders worst, and under a
            # randomized defense it is a lucky average. All of that would flatter the victim.
            attack = attack.model_copy(update={"stop": "never"})
        attacked, origin = self._search(attack, mode), self.pixels
        png = pixels_to_png(attack.ball.to_uint8(attacked.pixels, origin)[0])
        rounded = load_pixels(png, self.victim.clip.image_size)[None].to(origin)
        success, rate = self._judge(attacked.pixels)
        success_8bit, rate_8bit = self._judge(rounded)
        float_only = success and not success_8bit
        shown = attacked.pixels if float_only else rounded
        decision = self._decision(self._mean_logits(shown, "judged"))
        first = int(attacked.first_success[0])
        linf = (shown - origin).abs().max().item()
        include = self.options.include
        return AttackRecord(
            kind=attack.kind,
            params=attack.model_dump(mode="json", exclude={"kind"}),
            score=self.options.score,
            knowledge=mode,
            gradient=self.chain.gradient if mode == "adaptive" else "exact",
            eot=eot,
            success=success,
            success_8bit=success_8bit,
            rate=rate_8bit if success_8bit else rate if success else _worse(rate, rate_8bit),
            label=decision.label,
            probability=decision.probability,
            margin=decision.margin,
            linf=linf,
            linf_levels=round(linf * 255, 4),
            l2=(shown - origin).norm().item(),
            first_success_step=None if first < 0 else first,
            trace=Trace.of(attacked.trace_value[:, 0], attacked.trace_margin[:, 0]) if "curve" in include else None,
            heat=Heat.of(shown - origin) if "heat" in include else None,
            adversarial_png=base64.b64encode(png).decode() if "adversarial" in include and not float_only else None,
            witness_sha256=None if float_only else hashlib.sha256(png).hexdigest(),
            forward=attacked.cost.forward,
            backward=attacked.cost.backward,
        )

    def _search(self, attack: AnyAttack, mode: Knowledge) -> Attacked:
        attacked = attack(self._score(mode), self.pixels, self.seeds)
        self.cost = self.cost.plus(attacked.cost)
        return attacked

    def _score(self, mode: Knowledge) -> Score:
        targets = torch.tensor([self.truth], device=self.pixels.device)
        goals = None if self.goal is None else torch.tensor([self.goal], device=self.pixels.device)
        score = self.guard(label_score(self.options.score, self.defended if mode == "adaptive" else self.undefended, targets, goals))
        return averaged(score, self._eot(mode)) if self._eot(mode) > 1 else score

    def _eot(self, mode: Knowledge) -> int:
        return self.options.eot if mode == "adaptive" and self.chain.randomized else 1

    def _draw(self, pixels: Pixels, stream: str) -> Tensor:
        """[m, C] logits of the served chain: one row, or fresh draws of a randomized defense."""
        draws = self.options.fresh_draws if self.chain.randomized else 1
        seeds = torch.cat([derive(self.seeds, f"{stream}-{index}") for index in range(draws)])
        with torch.no_grad():
            logits = [self.served(pixels.expand(len(chunk), -1, -1, -1), chunk) for chunk in seeds.split(32)]
        self.cost = self.cost.plus(Cost(draws, 0))
        return torch.cat(logits)

    def _mean_logits(self, pixels: Pixels, stream: str) -> Tensor:
        return self._draw(pixels, stream).mean(dim=0)

    def _judge(self, pixels: Pixels) -> tuple[bool, Rate | None]:
        """Whether the goal is reached in a fresh forward of the serving path; for a randomized defense in most of the draws, interval included."""
        logits = self._draw(pixels, "fresh")
        targets = torch.full((len(logits),), self.truth if self.goal is None else self.goal, device=logits.device)
        margin = untargeted_margin(logits, targets)
        reached = margin > 0 if self.goal is None else margin < 0
        if not self.chain.randomized:
            return bool(reached[0]), None
        wrong, draws = int(reached.sum()), len(reached)
        _, low, high = wilson(wrong, draws)
        return low > 0.5, Rate(wrong=wrong, draws=draws, low=low, high=high)

    def _decision(self, logits: Tensor) -> Decision:
        index = int(logits.argmax())
        margin = untargeted_margin(logits[None], torch.tensor([self.truth], device=logits.device))[0].item()
        return Decision(label=self.victim.labels[index], probability=logits.softmax(dim=0)[index].item(), margin=margin, correct=index == self.truth)

    def _diagnostics(self, successes: dict[Knowledge, bool]) -> list[Diagnostic]:
        adaptive = successes.get("adaptive", False)
        score, plain = self._score("adaptive"), self._score("static")
        found: list[Diagnostic] = []

        def add(result: tuple[Diagnostic, Cost]) -> None:
            found.append(result[0])
            self.cost = self.cost.plus(result[1])

        add(sanity.gradient_present(score, self.pixels, self.seeds))
        if self.victim.defense:
            add(sanity.gradient_scale(score, plain, self.pixels, self.seeds))
        if self.chain.gradient == "exact" and not self.chain.randomized:
            add(sanity.gradient_true(score, self.pixels, self.seeds))
        if len(successes) == 2:
            found.append(sanity.transfer_weaker(successes["static"], adaptive))
        ball = self.options.attacks[0].ball
        add(sanity.noise_weaker(score, self.pixels, self.seeds, ball, adaptive))
        random, cost = sanity.randomness(self.asked, self.pixels, self.seeds, declared=self.chain.randomized, eot=self._eot("adaptive"))
        found.extend(random)
        self.cost = self.cost.plus(cost)
        add(sanity.rows_independent(self.asked, self.pixels, self.seeds))
        if not adaptive and "adaptive" in successes:
            add(sanity.unbounded_succeeds(boundless(ball, self.victim.clip.image_size), score, self.pixels, self.seeds))
        return found

    def _index(self, label: str, field: str) -> int:
        if label not in self.victim.labels:
            raise InvalidInput(f"{label!r} is not among the labels.", field=field, help=f"Choose one of: {', '.join(self.victim.labels[:10])}.")
        return self.victim.labels.index(label)


def _worse(first: Rate | None, second: Rate | None) -> Rate | None:
    """The rate that says less good of the victim."""
    return max((rate for rate in (first, second) if rate is not None), key=lambda rate: rate.high, default=None)
