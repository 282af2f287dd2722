"""The deployed chain as judge: a search's own success does not count, a fresh forward does."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from robustclip.attacks.cascade import CandidateCheck
from robustclip.attacks.events import Meter
from robustclip.certificates.vote import Ballot, count_votes, elect
from robustclip.defenses.smoothing import Smoothing
from robustclip.images import load_pixels, pixels_to_png
from robustclip.measuring import wilson
from robustclip.models.scoring import Scoring, scores_of
from robustclip.reports.report import Decision, Rate
from robustclip.scores.losses import untargeted_margin
from robustclip.seeds import derive
from robustclip.threat import LEVELS, BallSpec
from robustclip.types import Classifier, Cost, Pixels, Seeds

_DRAWS_AT_ONCE = 32
_LEAST_LEVEL = 1 - 1e-5  # what a radius of 1/255 may come to in levels


class Aim(NamedTuple):
    """What an attack is to reach, in label indices: `truth` loses, to any label or, if given, to `goal`."""

    truth: int
    goal: int | None = None


class Judged(NamedTuple):
    """Whether the aim was reached; for a randomized defense in most of the draws, with the rate."""

    reached: bool
    rate: Rate | None


class Candidate(NamedTuple):
    """An attack's best point, judged by the deployed chain. `pixels` [1, 3, S, S] and `decision` are those of
    the picture that is shown.

    That is the decoded PNG, unless only the float pixels succeed.
    """

    pixels: Pixels
    png: bytes
    success: bool
    success_8bit: bool
    rate: Rate | None
    decision: Decision

    @property
    def float_only(self) -> bool:
        return self.success and not self.success_8bit


@dataclass(frozen=True, eq=False)
class Served:
    """What `/classify` would answer about one picture under attack.

    draws  of a randomized defense on which a candidate is judged; 1 for any other
    meter  pays for every evaluation
    price  of one evaluation
    rule   the vote that is served, if one is; the draws are its votes
    scoring  how logits become probabilities
    """

    classifier: Classifier
    randomized: bool
    draws: int
    seeds: Seeds
    meter: Meter
    rule: Smoothing | None = None
    price: Cost = field(default=Cost(1))
    scoring: Scoring = "softmax"

    def logits(self, pixels: Pixels, stream: str) -> Tensor:
        """[draws, C] logits of one picture [1, 3, S, S], each with randomness of its own."""
        seeds = torch.cat([derive(self.seeds, f"{stream}-{index}") for index in range(self.draws)])
        with torch.no_grad():
            answers = [
                self.classifier(pixels.expand(len(chunk), -1, -1, -1), chunk)
                for chunk in seeds.split(_DRAWS_AT_ONCE)
            ]
        self.meter.pay(self.price.times(self.draws))
        return torch.cat(answers)

    def opinion(self, logits: Tensor) -> Tensor:
        """[C] the mean of the draws' logits [draws, C]; under a vote, the labels' shares."""
        return logits.mean(dim=0) if self.rule is None else count_votes(logits) / len(logits)

    def decision(self, opinion: Tensor, truth: int) -> Decision:
        """The decision of an opinion [C], compared with the true label."""
        index = int(opinion.argmax())
        margin = untargeted_margin(opinion[None], torch.tensor([truth], device=opinion.device))[0].item()
        probability = (opinion if self.rule is not None else scores_of(opinion, self.scoring))[index].item()
        abstained = (
            self.rule is not None and self._ballot((opinion * self.draws).round().long(), self.rule).abstained
        )
        return Decision(
            label=self.classifier.labels[index],
            probability=probability,
            margin=margin,
            correct=index == truth,
            abstained=abstained,
        )

    def judged(self, pixels: Pixels, aim: Aim) -> Judged:
        """Whether one picture reaches the aim, on draws that no search has seen. A vote reaches it by an
        answer, not by abstaining.
        """
        return self._judged(self.logits(pixels, "fresh"), aim)

    def _judged(self, logits: Tensor, aim: Aim) -> Judged:
        targets = torch.full(
            (len(logits),), aim.truth if aim.goal is None else aim.goal, device=logits.device
        )
        margin = untargeted_margin(logits, targets)
        reached = margin > 0 if aim.goal is None else margin < 0
        if not self.randomized:
            return Judged(bool(reached[0]), None)
        wrong = int(reached.sum())
        _, low, high = wilson(wrong, self.draws)
        rate = Rate(wrong=wrong, draws=self.draws, low=low, high=high)
        if self.rule is None:
            return Judged(low > 0.5, rate)
        counts = count_votes(logits)
        winner = int(counts.argmax())
        answered = not self._ballot(counts, self.rule).abstained
        return Judged(answered and (winner != aim.truth if aim.goal is None else winner == aim.goal), rate)

    def candidate(self, pixels: Pixels, origin: Pixels, ball: BallSpec, aim: Aim) -> Candidate:
        """Judge an attack's best point twice, as it is and from its PNG."""
        png, rounded = _rounded(pixels, origin, ball)
        logits, logits_8bit = self.logits(pixels, "fresh"), self.logits(rounded, "fresh")
        (success, rate), (success_8bit, rate_8bit) = self._judged(logits, aim), self._judged(logits_8bit, aim)
        float_only = success and not success_8bit
        shown, shown_logits = (pixels, logits) if float_only else (rounded, logits_8bit)
        decision = self.decision(self.opinion(shown_logits), aim.truth)
        return Candidate(
            shown,
            png,
            success,
            success_8bit,
            rate_8bit if success_8bit else rate if success else _worse(rate, rate_8bit),
            decision,
        )

    def _ballot(self, counts: Tensor, rule: Smoothing) -> Ballot:
        return elect(counts, self.classifier.labels, rule)

    def judge(self, origin: Pixels, ball: BallSpec, aim: Aim, *, bits: bool = True) -> CandidateCheck:
        """The judge for a search on `origin` [1, 3, S, S]: a candidate counts if its PNG reaches the aim.

        It is judged as float pixels where the ball has no room for a change of one 8-bit level, and without
        `bits`.
        """
        exact = not bits or not _has_levels(ball)

        def counts(candidates: Pixels, rows: Tensor) -> Tensor:
            shown = [each[None] if exact else _rounded(each[None], origin, ball)[1] for each in candidates]
            return torch.tensor(
                [self.judged(each, aim).reached for each in shown], dtype=torch.bool, device=candidates.device
            )

        return counts


def _rounded(pixels: Pixels, origin: Pixels, ball: BallSpec) -> tuple[bytes, Pixels]:
    """The PNG of a point, inside the ball, and what a decoder makes of it."""
    png = pixels_to_png(ball.to_uint8(pixels, origin)[0])
    return png, load_pixels(png, pixels.shape[-1])[None].to(origin)


def _has_levels(ball: BallSpec) -> bool:
    """Whether a single value can move by one level of 255: in both norms the smallest change of a PNG."""
    return ball.radius * LEVELS >= _LEAST_LEVEL


def _worse(first: Rate | None, second: Rate | None) -> Rate | None:
    """The rate that is worse for the victim."""
    return max(
        (rate for rate in (first, second) if rate is not None), key=lambda rate: rate.high, default=None
    )
