"""The engine of the strong attack: stages of attacks over a batch of pictures, until each is broken or no
stage is left. `ensemble` defines the stages.

Attacks never decide success: every candidate is evaluated again in float32, and that margin counts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from robustclip.attacks.base import BallAttack, BestPoints, check_seeds, pick
from robustclip.attacks.events import (
    AttackEnded,
    AttackStarted,
    CascadeWitness,
    Done,
    Event,
    Meter,
    SearchProgress,
    Started,
)
from robustclip.attacks.pgd import PGD
from robustclip.scores import LossName, decision, reduced, restated, runners_up, transferred
from robustclip.seeds import derive
from robustclip.threat import BallSpec
from robustclip.types import Cost, Pixels, Score, Seeds

# (candidates [n, 3, S, S], the rows of their pictures [n]) -> [n] bool: whether it is a witness
CandidateCheck: TypeAlias = Callable[[Pixels, Tensor], Tensor]
Precision: TypeAlias = Literal["float32", "bfloat16"]

RIVALS = 9  # labels that targeted attacks try, one after the other


class StandIn(NamedTuple):
    """A model whose gradients are tried on the victim: the undefended classifier, another prompt set, a pool.
    Its score is about the same rows as the victim's.
    """

    name: str
    score: Score


class Variant(NamedTuple):
    """One way to use an attack; `rival` is the rank of a label by its logit on the clean picture, 0 the
    highest beside the target.
    """

    loss: LossName
    rival: int | None = None
    temperature: float = 1.0
    restart: int = 0


class CascadeStage(NamedTuple):
    """An attack with its variants, which differ in rivals, temperatures and draws alone; `source`: the index
    of the stand-in whose gradients are used, if not the victim's.
    """

    name: str
    attack: BallAttack
    variants: tuple[Variant, ...]
    source: int | None = None


def bill(
    stages: Sequence[CascadeStage], widening: PGD | None, precision: Precision, *, judged: bool = False
) -> Cost:
    """Upper bound a picture, if a score costs one pass a row; `judged`: a picture may be widened in vain,
    once for each variant.
    """
    widened = sum(len(stage.variants) for stage in stages) if judged else 1
    total = Cost(2) if widening is None else _judged(widening, precision).times(widened).plus(Cost(2))
    for stage in stages:
        total = total.plus(
            _judged(stage.attack, precision, transferred=stage.source is not None)
            .plus(Cost(1))
            .times(len(stage.variants))
        )
    return total


def _judged(attack: BallAttack, precision: Precision, *, transferred: bool = False) -> Cost:
    """The attack's bill with the evaluations on the victim beside a stand-in's, and in float32 beside
    bfloat16.
    """
    searched = attack.bill(1)
    return searched.plus(Cost(searched.forward * ((1 + transferred) * (1 + (precision != "float32")) - 1)))


@dataclass(eq=False)
class Cascade:
    """One run over a batch of pictures; `events` goes through it once, and `record` holds the result.

    together    how many variants of a stage share a batch
    widening    an attack that goes on from a success; None: a success is enough
    precision   of the search
    judge       has the last word on what breaks a picture, the clean one included
    replays     [B, 3, S, S] earlier witnesses
    """

    ball: BallSpec
    stages: tuple[CascadeStage, ...]
    score: Score
    pixels: Pixels
    seeds: Seeds
    radii: Tensor
    meter: Meter
    together: int = 1
    widening: PGD | None = None
    precision: Precision = "float32"
    judge: CandidateCheck | None = None
    sources: tuple[StandIn, ...] = ()
    replays: Pixels | None = None
    record: BestPoints = field(init=False)
    rivals: Tensor = field(init=False)
    standing: Tensor = field(init=False)
    points: int = 0

    def __post_init__(self) -> None:
        check_seeds(self.pixels, self.seeds)
        self.record = BestPoints.of(self.pixels, points=2 + sum(len(stage.variants) for stage in self.stages))
        self.standing = torch.arange(len(self.pixels), device=self.pixels.device)

    def events(self) -> Iterator[Event]:
        yield Started(
            len(self.pixels), bill(self.stages, self.widening, self.precision).times(len(self.pixels)).charged
        )
        with self.meter.stopping():
            yield from self._untouched()
            for stage in self.stages if bool(self.radii.any()) else ():
                if not len(self.standing) or self.meter.over():
                    break
                yield AttackStarted(stage.name, before := len(self.standing))
                for start in range(0, len(stage.variants), self.together):
                    if len(self.standing) and not self.meter.over():
                        yield from self._try(stage, stage.variants[start : start + self.together], start)
                yield AttackEnded(
                    stage.name, before - len(self.standing), len(self.standing), self.meter.spent
                )
        self.record.cost = self.meter.spent
        yield Done(tuple(self.standing.tolist()), self.meter.spent, self.meter.cut)

    def _untouched(self) -> Iterator[Event]:
        """The pictures themselves, then earlier witnesses. The clean logits give the rivals."""
        seen = self.score(self.pixels, derive(self.seeds, "clean"), grad=False)
        if seen.logits is not None:
            self.rivals = runners_up(seen.logits, decision(self.score).targets, RIVALS)
        self.record.add(self.standing, self.pixels, seen, 0)
        self.meter.pay(seen.cost)
        self.points = 1
        yield from self._fallen("clean", self.pixels, seen.margin)
        if self.replays is not None and len(self.standing):
            inside = self.ball.shrink(self.replays, self.pixels, self.radii)
            yield from self._confirm("replay", inside[self.standing])

    def _try(self, stage: CascadeStage, variants: Sequence[Variant], start: int) -> Iterator[Event]:
        """Some variants of one attack on every unbroken picture, the variants of a picture side by side."""
        rows = self.standing.repeat_interleave(len(variants))
        streams = [
            derive(pick(self.seeds, self.standing), f"{stage.name}-{start + index}")
            for index in range(len(variants))
        ]
        search = stage.attack.search(
            self._aimed(stage, variants, rows),
            self.pixels[rows],
            torch.stack(streams, dim=1).flatten(),
            radius=self.radii[rows],
            teams=rows if len(variants) > 1 else None,
        )
        found: BestPoints | None = None
        for found in self.meter.metered(search):
            if found.cost.forward:
                yield SearchProgress(stage.name, found.margin.max().item(), self.meter.spent)
        if found is not None and found.cost.forward:
            best = found.margin.reshape(-1, len(variants)).argmax(dim=1) + torch.arange(
                0, len(rows), len(variants), device=rows.device
            )
            candidates = found.pixels[best]
            if self.widening is not None and bool((fooled := found.margin[best] > 0).any()):
                candidates[fooled] = self._widened(self.widening, candidates[fooled], self.standing[fooled])
            yield from self._confirm(stage.name, candidates)

    def _aimed(self, stage: CascadeStage, variants: Sequence[Variant], rows: Tensor) -> Score:
        victim = self._searched(self.score).select(rows)
        if stage.source is not None:
            return transferred(self._searched(self.sources[stage.source].score).select(rows), victim)
        places = [variant.rival for variant in variants if variant.rival is not None]
        rivals = self.rivals[self.standing][:, places].flatten() if places else None
        temperature = torch.tensor([variant.temperature for variant in variants], device=rows.device).repeat(
            len(self.standing)
        )
        return restated(victim, variants[0].loss, rivals=rivals, temperature=temperature)

    def _searched(self, score: Score) -> Score:
        return reduced(score) if self.precision == "bfloat16" else score

    def _widened(self, widening: PGD, candidates: Pixels, rows: Tensor) -> Pixels:
        score = restated(self._searched(self.score).select(rows), "margin")
        search = widening.search(
            score,
            self.pixels[rows],
            derive(pick(self.seeds, rows), "widen"),
            radius=self.radii[rows],
            begin=candidates,
        )
        wider = candidates
        for record in self.meter.metered(search):
            wider = record.pixels if record.cost.forward else wider
        return wider

    def _confirm(self, attack: str, candidates: Pixels) -> Iterator[Event]:
        """Evaluate a candidate for every unbroken picture again, since a search does not decide success."""
        streams = derive(pick(self.seeds, self.standing), f"confirm-{self.points}")
        seen = self.score.select(self.standing)(candidates, streams, grad=False)
        self.meter.pay(seen.cost)
        self.record.add(self.standing, candidates, seen, self.points)
        self.points += 1
        yield from self._fallen(attack, candidates, seen.margin)

    def _fallen(self, attack: str, candidates: Pixels, margins: Tensor) -> Iterator[Event]:
        """A witness for each picture that is broken, which then leaves."""
        fooled = margins > 0
        if self.judge is not None and bool(fooled.any()):
            fooled[fooled.clone()] = self.judge(candidates[fooled], self.standing[fooled])
        distances = self.ball.distance(candidates, self.pixels[self.standing])
        fallen = [
            CascadeWitness(
                int(self.standing[place]),
                candidates[place],
                float(margins[place]),
                float(distances[place]),
                attack,
            )
            for place in fooled.nonzero().flatten().tolist()
        ]
        self.standing = self.standing[~fooled]
        yield from fallen
