"""The smallest radius at which one picture breaks, as a bracket: the upper end has a witness; the lower end
is a record of effort and proves nothing. `bracket` is the search.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from robustclip.attacks.base import check_seeds
from robustclip.attacks.bracket import CASCADES, BracketSearch, bill
from robustclip.attacks.cascade import CandidateCheck, Precision
from robustclip.attacks.ensemble import Ensemble, Preset
from robustclip.attacks.events import Event, Meter
from robustclip.errors import InvalidInput
from robustclip.scores import decision
from robustclip.threat import BallSpec, Linf, Radius
from robustclip.types import FREE, Cost, Pixels, Score, Seeds


class Minimal(BaseModel, frozen=True, extra="forbid"):
    """Close in on the smallest radius.

    ball       the norm, and the farthest radius that is tried
    width      when the bracket is close enough; None: 0.05/255 for Linf, 0.01 for L2
    preset     of the ensemble that attacks once more just below the best witness; None: nothing does
    precision  of the search; every candidate is judged in float32
    """

    kind: Literal["minimal"] = "minimal"
    ball: BallSpec
    width: Annotated[Radius, Field(gt=0)] | None = None
    preset: Preset | None = "standard"
    together: int = Field(default=9, ge=1, le=64)
    randomized: bool = False
    precision: Precision = "float32"

    def events(
        self,
        score: Score,
        pixels: Pixels,
        seeds: Seeds,
        *,
        meter: Meter | None = None,
        judge: CandidateCheck | None = None,
        known: Pixels | None = None,
    ) -> Iterator[Event]:
        """Attack one picture [1, 3, S, S]; `Bracket` after every witness and every round, last `Done`.

        `judge` has the last word on what is a witness; `known` [1, 3, S, S] is an earlier one, and saves the
        search for the first. Stopping the iterator stops the attack. Raises InvalidInput for more than one
        picture and for a score that is not about a decision between labels.
        """
        check_seeds(pixels, seeds)
        if len(pixels) != 1:
            raise InvalidInput(
                f"a bracket is about 1 picture, found {len(pixels)}.",
                field="pixels",
                help="Ask for one after the other.",
            )
        charged = self.bill(labels=len(decision(score).classifier.labels)).charged
        return BracketSearch(
            self.ball,
            self.closeness,
            self._ensemble,
            self.precision,
            score,
            pixels,
            seeds,
            meter or Meter(),
            judge,
            charged,
        ).events(known)

    def bill(self, *, labels: int = 10) -> Cost:
        """Upper bound, if a score costs one pass a row."""
        ensemble = self._ensemble
        last = FREE if ensemble is None else ensemble.bill(1, labels=labels).times(CASCADES)
        return bill(self.ball, self.closeness).times(1 if self.precision == "float32" else 2).plus(last)

    @property
    def closeness(self) -> float:
        """The bracket's width at which the search ends, in the ball's norm."""
        return self.width or (0.05 / 255 if isinstance(self.ball, Linf) else 0.01)

    @property
    def _ensemble(self) -> Ensemble | None:
        return self.preset and Ensemble(
            ball=self.ball,
            preset=self.preset,
            together=self.together,
            randomized=self.randomized,
            precision=self.precision,
        )
