"""What a probe is asked to try, and what that may cost: known before any work."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from robustclip import sanity
from robustclip.attacks import AnyAttack
from robustclip.attacks.pgd import PGD
from robustclip.report import Knowledge
from robustclip.scores import AnyScoreName
from robustclip.threat import L2, BallSpec, Linf
from robustclip.victim import Victim

Include = Literal["curve", "heat", "adversarial"]


def default_attack() -> PGD:
    """PGD-20 on Linf 4/255 from the picture and from one random point, to the end: the strongest witness, not the first."""
    return PGD(ball=Linf(radius=4 / 255), steps=20, stop="never")


class ProbeOptions(BaseModel):
    """What to try.

    modes        `static` attacks the undefended classifier and shows the result to the defended one; `adaptive` attacks through the defense
    true_label   what the picture shows; None: the clean decision, which then is to be changed
    target_label the label to reach; None: any other
    eot          draws of a randomized defense averaged in each gradient
    fresh_draws  draws of a randomized defense on which a candidate is judged
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attacks: Annotated[tuple[AnyAttack, ...], Field(min_length=1, max_length=16)] = Field(default_factory=lambda: (default_attack(),))
    score: AnyScoreName = "margin"
    modes: Annotated[tuple[Knowledge, ...], Field(min_length=1)] = ("static", "adaptive")
    true_label: str | None = None
    target_label: str | None = None
    eot: int = Field(default=8, ge=1, le=64)
    fresh_draws: int = Field(default=64, ge=1, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**63)
    include: tuple[Include, ...] = ()


def charged_passes(victim: Victim, options: ProbeOptions) -> int:
    """Upper bound of what a probe costs, in charged passes (F + 2 B), before any work: EOT, judging and diagnostics counted."""
    randomized = any(part.randomized for part in victim.defense)
    draws, eot = (options.fresh_draws, options.eot) if randomized else (1, 1)
    total = draws + sanity.charged_passes(eot)
    for attack in options.attacks:
        for mode in modes_of(victim, options):
            total += attack.charged(1) * (eot if mode == "adaptive" else 1) + 3 * draws  # judged as floats, as a PNG, and to be shown
    return total + boundless(options.attacks[0].ball, victim.clip.image_size).charged(1) * eot


def modes_of(victim: Victim, options: ProbeOptions) -> tuple[Knowledge, ...]:
    """Without a defense there is nothing that a static attack would not know: one adaptive attack says it all."""
    return options.modes if victim.defense else ("adaptive",)


def boundless(ball: BallSpec, size: int) -> PGD:
    """The attack that can't fail: PGD-20 at 64/255; for L2 the length of a change of 64/255 in every value."""
    radius = 64 / 255
    return PGD(ball=Linf(radius=radius) if isinstance(ball, Linf) else L2(radius=radius * math.sqrt(3 * size * size)), steps=20, starts=("random",))
