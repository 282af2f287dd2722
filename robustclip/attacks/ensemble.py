"""The strong attack: a cascade of attacks, cheap ones first, that ends for a picture as soon as one breaks
it.

After AutoAttack (Croce & Hein 2020, arXiv 2003.01690). Deviations: it works for two labels and more; margin
PGD goes first and breaks most pictures that break at all; cross-entropy is tried at several temperatures; FAB
is left out; a fresh evaluation confirms every witness. For one picture, restarts, targets and temperatures
run `together` as rows of one batch; over many pictures one at a time is cheaper.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, TypeAlias

from pydantic import BaseModel, Field
from torch import Tensor

from robustclip.attacks.apgd import APGD
from robustclip.attacks.base import Options, radii_of
from robustclip.attacks.cascade import (
    RIVALS,
    CandidateCheck,
    Cascade,
    CascadeStage,
    Precision,
    StandIn,
    Variant,
    bill,
)
from robustclip.attacks.events import Done, Event, Meter
from robustclip.attacks.noise import Noise
from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square
from robustclip.errors import Cancelled, DeadlineExceeded
from robustclip.scores import LEAST_LABELS, LossName, decision
from robustclip.threat import BallSpec
from robustclip.types import Attacked, Cost, Pixels, Score, Seeds

Preset: TypeAlias = Literal["quick", "standard", "thorough"]


class Ensemble(BaseModel, frozen=True, extra="forbid"):
    """Noise, margin PGD, then by preset APGD on cross-entropy, APGD on the nearest labels one by one, and
    Square.

    preset      `quick` some 230 charged passes a picture, `standard` some 3,100, `thorough` some 13,000 (ten
                labels)
    together    how many variants of an attack (targets, temperatures, restarts) of one picture share a batch;
                the first that succeeds ends the others
    widen       steps to go on from a success, still inside the ball: a success of a small margin may not
                survive rounding or another encoder
    randomized  for a randomized victim: Square then evaluates incumbent and candidate on equal draws. Give an
                `averaged` score
    precision   of the search; witnesses are confirmed in float32
    """

    quick: ClassVar[Options] = {"preset": "quick"}
    kind: Literal["ensemble"] = "ensemble"
    ball: BallSpec
    preset: Preset = "standard"
    together: int = Field(default=1, ge=1, le=64)
    widen: int = Field(default=0, ge=0, le=1000)
    randomized: bool = False
    precision: Precision = "float32"

    def __call__(
        self, score: Score, pixels: Pixels, seeds: Seeds, *, radius: Tensor | None = None
    ) -> Attacked:
        """Attack every row by itself; a row's trace has a point for the picture and one for each variant
        tried.

        `radius` [B] overrides the ball's. Raises InvalidInput for a score that is not about a decision
        between labels.
        """
        cascade = self.cascade(score, pixels, seeds, radius=radius)
        for event in cascade.events():
            if isinstance(event, Done) and event.cut == "cancelled":
                raise Cancelled("the caller is gone, the attack stopped.")
            if isinstance(event, Done) and event.cut is not None:
                raise DeadlineExceeded(
                    "the attack did not end in time.", help="Ask for a quicker preset, or for more time."
                )
        return cascade.record.attacked()

    def events(
        self,
        score: Score,
        pixels: Pixels,
        seeds: Seeds,
        *,
        meter: Meter | None = None,
        judge: CandidateCheck | None = None,
        sources: Sequence[StandIn] = (),
        replays: Pixels | None = None,
        radius: Tensor | None = None,
    ) -> Iterator[Event]:
        """The same attack as events: `Started`, then those of each attack, last `Done`.

        `judge` has the last word on what breaks a picture; `sources` are tried between noise and PGD;
        `replays` [B, 3, S, S] are earlier witnesses. Stopping the iterator stops the attack. DeadlineExceeded
        and Cancelled of a guarded score end it with `Done`.
        """
        return self.cascade(
            score, pixels, seeds, meter=meter, judge=judge, sources=sources, replays=replays, radius=radius
        ).events()

    def bill(self, rows: int, *, labels: int = RIVALS + 1, sources: int = 0, judged: bool = False) -> Cost:
        """Upper bound for that many rows, if a score costs one pass a row; `judged`: a judge may refuse every
        attack's candidate.
        """
        return bill(
            self.stages(labels, sources=("",) * sources), self._widening(), self.precision, judged=judged
        ).times(rows)

    def stages(
        self, labels: int, *, targeted: bool = False, sources: Sequence[str] = ()
    ) -> tuple[CascadeStage, ...]:
        """The stages, in their order, for a decision between that many labels."""
        margin = (Variant("margin"),)
        pgd = PGD(ball=self.ball, steps=20)
        stages = [
            CascadeStage("noise", Noise(ball=self.ball), margin),
            *(
                CascadeStage(f"transfer-{name}", pgd, margin, source=index)
                for index, name in enumerate(sources)
            ),
            CascadeStage("margin-pgd", pgd, margin),
        ]
        queries = {"quick": 100, "standard": 1000, "thorough": 5000}[self.preset]
        if self.preset != "quick":
            standard = self.preset == "standard"
            temperatures = (1.0, 10.0) if standard else (1.0, 10.0, 100.0)
            restarts, steps = (1, 50) if standard else (2, 100)
            plain = APGD(ball=self.ball)
            entropy = [
                Variant("cross_entropy", temperature=temperature, restart=restart)
                for restart in range(restarts)
                for temperature in temperatures
            ]
            stages.append(CascadeStage("apgd-cross-entropy", plain, tuple(entropy)))
            if self.preset == "thorough" or labels == 2:
                drawn = tuple(Variant("margin", restart=restart) for restart in range(restarts))
                stages.append(CascadeStage("apgd-margin", plain, drawn))
            if labels == 3 or (targeted and labels > 2):
                drawn = tuple(Variant("dlr", restart=restart) for restart in range(restarts))
                stages.append(CascadeStage("apgd-dlr", plain, drawn))
            if labels > 2 and not targeted:
                loss: LossName = (
                    "targeted_dlr" if labels >= LEAST_LABELS["targeted_dlr"] else "targeted_margin"
                )
                aimed = [
                    Variant(loss, rival=rival, restart=restart)
                    for restart in range(restarts)
                    for rival in range(min(RIVALS, labels - 1))
                ]
                stages.append(CascadeStage("apgd-targeted", APGD(ball=self.ball, steps=steps), tuple(aimed)))
        square = Square(ball=self.ball, queries=queries, redraw=self.randomized)
        return (*stages, CascadeStage("square", square, margin))

    def cascade(
        self,
        score: Score,
        pixels: Pixels,
        seeds: Seeds,
        *,
        meter: Meter | None = None,
        judge: CandidateCheck | None = None,
        sources: Sequence[StandIn] = (),
        replays: Pixels | None = None,
        radius: Tensor | None = None,
    ) -> Cascade:
        """The run behind `events`, which also holds the record of best points."""
        about = decision(score)
        stages = self.stages(
            len(about.classifier.labels), targeted=about.targeted, sources=[source.name for source in sources]
        )
        return Cascade(
            self.ball,
            stages,
            score,
            pixels,
            seeds,
            radii_of(pixels, self.ball.radius, radius),
            meter or Meter(),
            together=self.together,
            widening=self._widening(),
            precision=self.precision,
            judge=judge,
            sources=tuple(sources),
            replays=replays,
        )

    def _widening(self) -> PGD | None:
        return PGD(ball=self.ball, steps=self.widen, starts=("zero",), stop="never") if self.widen else None
