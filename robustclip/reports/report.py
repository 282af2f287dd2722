"""The probe report: one schema, `robustclip.probe/1`, for the library, the command and the service. Additive
changes only; any other change is /2.

Everything in it follows from the victim, the picture, the options and the seed: two probes with equal inputs
give equal reports. Identifiers and times are the caller's to add.
"""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from robustclip.attacks import Cut
from robustclip.certificates.certify import Certificate
from robustclip.models.scoring import Scoring, outcomes
from robustclip.sanity.selftest import SelfTest
from robustclip.sanity.symptoms import Diagnostic
from robustclip.threat import Norm
from robustclip.types import Pixels

SCHEMA = "robustclip.probe/1"
VerdictValue = Literal["broken", "certified", "inconclusive", "not-broken-within-budget"]
Knowledge = Literal["static", "adaptive", "transfer", "black_box", "oblivious"]

_MAX_TRACE = 50
_CELL = 16  # pixels a side of a heat map cell


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class DefensePart(_Part):
    """A link of the attacked chain; `gradient` says how the adaptive attack got through it."""

    kind: str
    params: dict[str, Any]
    gradient: str
    randomized: bool
    stage: str
    status: str


class VictimPart(_Part):
    """What was attacked; `digest` is one sha256 over all of it."""

    digest: str
    arch: str
    pretrained: str
    fingerprint: str
    prompt_set: str
    templates: tuple[str, ...]
    labels: tuple[str, ...]
    defense: tuple[DefensePart, ...]
    randomized: bool
    encoder: str
    scoring: Scoring = Field(
        default="softmax",
        description="under sigmoid the decision may also say `none of these`; absent in older reports",
    )

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What the decision may say. Raises InvalidInput as `robustclip.models.scoring.outcomes`."""
        return outcomes(self.labels, self.scoring)


class Decision(_Part):
    """A decision of the served chain; for a randomized defense the mean over fresh draws, for a smoothed one
    their votes.
    """

    label: str
    probability: float = Field(
        description="softmax over the labels; or sigmoid of the label's own logit, and of `none of these` 1 "
        "minus the highest of a label; of a smoothed decision the share of the votes"
    )
    margin: float = Field(
        description="logit (share) of the runner-up minus the winner's if correct: below 0 the true label "
        "wins; the logit of `none of these` is 0"
    )
    correct: bool
    abstained: bool = Field(default=False, description="the votes prove nothing: no answer would be given")


class InputPart(_Part):
    sha256: str = Field(description="of the attacked pixels as 8-bit values")
    resolution: tuple[int, int]
    true_label: str
    target_label: str | None
    goal: Literal["change_label", "change_decision", "reach_target"]
    clean: Decision


class Rate(_Part):
    """How often fresh draws of a randomized defense decide wrongly, with the Wilson 95 % interval."""

    wrong: int
    draws: int
    low: float
    high: float


class Trace(_Part):
    """What an attack saw on its way, thinned to 50 steps."""

    step: tuple[int, ...]
    value: tuple[float | None, ...]
    margin: tuple[float | None, ...]

    @classmethod
    def of(cls, value: Tensor, margin: Tensor) -> "Trace":
        """From [T] values and margins."""
        values, margins = value.tolist(), margin.tolist()
        steps = range(0, len(values), max(1, math.ceil(len(values) / _MAX_TRACE)))
        return cls(
            step=tuple(steps),
            value=tuple(_finite(values[step]) for step in steps),
            margin=tuple(_finite(margins[step]) for step in steps),
        )


class Heat(_Part):
    """Mean |change| a cell, in 8-bit levels, rows from the top."""

    grid: tuple[int, int]
    levels: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, change: Pixels) -> "Heat":
        """From the change [1, 3, S, S] of one picture."""
        grid = max(change.shape[-1] // _CELL, 2)
        cells = F.adaptive_avg_pool2d(change.abs().mean(dim=1, keepdim=True) * 255, grid)[0, 0]
        return cls(
            grid=(grid, grid), levels=tuple(tuple(round(value, 4) for value in row) for row in cells.tolist())
        )


class StagePart(_Part):
    """One attack of a cascade: whether it broke the decision, and what it took (charged passes)."""

    name: str
    broken: bool
    charged: int


class AttackRecord(_Part):
    """One attack with one knowledge.

    `success` is judged by the serving path in a fresh forward on the float pixels, `success_8bit` on the
    decoded PNG. `knowledge` says whose gradients or values were used: the defended decision's (`adaptive`;
    `black_box`: values alone), the undefended one's (`static`), another prompt set's (`transfer`), or the
    image tower's (`oblivious`).
    """

    kind: str
    params: dict[str, Any]
    score: str
    knowledge: Knowledge
    gradient: str
    eot: int
    success: bool
    success_8bit: bool
    rate: Rate | None
    label: str
    probability: float
    margin: float
    linf: float
    linf_levels: float
    l2: float
    first_success_step: int | None
    trace: Trace | None
    heat: Heat | None
    adversarial_png: str | None = Field(
        description="base64 of an S x S PNG, if asked for; absent where only the float pixels succeed"
    )
    witness_sha256: str | None
    forward: int
    backward: int
    stages: tuple[StagePart, ...] = Field(
        default=(), description="of a cascade: the attacks it tried, in their order"
    )


class MinimalRadius(_Part):
    """The smallest radius that breaks the decision, bracketed; radii in pixel units.

    `broken` has a witness that the serving path confirmed as float pixels (None: none up to `farthest`).
    `unbroken` withstood what was tried there: a record of effort, never a bound. `complete`: the search ended
    because the bracket was as close as `width`, not because its passes were spent.
    """

    norm: Norm
    unbroken: float
    unbroken_text: str
    broken: float | None
    broken_text: str | None
    label: str | None
    level_8bit: int | None = Field(
        description="Linf: the fewest levels of 255 at which a PNG is known to break it"
    )
    farthest: float
    width: float
    complete: bool
    witness_sha256: str | None = Field(description="of the witness's PNG, if that breaks it too")
    forward: int
    backward: int


class CertificatePart(Certificate):
    """A certificate of the smoothed decision; `served` says whether that is the deployed one, so that it
    counts for the verdict.
    """

    served: bool


class Gap(_Part):
    """Illusory robustness: what a static attack alone would have claimed."""

    static_success: bool
    adaptive_success: bool
    illusory: bool


class Verdict(_Part):
    value: VerdictValue
    bits: Literal["8", "float"] | None
    reason: str
    sentence: str


class ProbeReport(_Part):
    schema_: Literal["robustclip.probe/1"] = Field(
        default=SCHEMA, alias="schema", serialization_alias="schema"
    )
    code_version: str
    seed: int
    device: str
    dtype: str = "float32"
    victim: VictimPart
    input: InputPart
    attacks: tuple[AttackRecord, ...]
    gap: Gap | None
    diagnostics: tuple[Diagnostic, ...]
    verdict: Verdict
    forward: int
    backward: int
    charged: int
    minimal_radius: MinimalRadius | None = None
    self_test: SelfTest | None = Field(
        default=None,
        description="whether the attack solves problems that have an answer, where it broke nothing",
    )
    certificate: CertificatePart | None = Field(
        default=None, description="if asked for; without one nothing is certain"
    )
    cut: Cut | None = Field(default=None, description="what ended the probe before its time")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
