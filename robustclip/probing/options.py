"""What a probe is asked to try."""

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from robustclip.attacks import AnyAttack
from robustclip.attacks.ensemble import Ensemble, Preset
from robustclip.attacks.pgd import PGD
from robustclip.certificates.certify import CertifyOptions, NoiseOptions
from robustclip.certificates.vote import smoothing_of
from robustclip.probing.victim import Victim
from robustclip.scores.kinds import AnyScoreName
from robustclip.threat import L2, BallSpec, Linf, Radius

Include: TypeAlias = Literal["curve", "heat", "adversarial"]
Mode: TypeAlias = Literal["static", "adaptive", "transfer", "oblivious"]

FARTHEST = 64 / 255  # of every value: at this radius nothing stands


def default_attack() -> PGD:
    """PGD-20 on Linf 4/255 from the picture and from one random point, to the end: the strongest witness, not
    the first.
    """
    return PGD(ball=Linf(radius=4 / 255), steps=20, stop="never")


def strong_attack(ball: BallSpec, preset: Preset) -> Ensemble:
    """The ensemble as a live probe runs it: the variants of an attack as rows of one batch, successes widened
    until they survive rounding.
    """
    return Ensemble(ball=ball, preset=preset, together=9, widen=8)


class ProbeOptions(BaseModel):
    """What to try.

    modes        what the attacker knows. `static` attacks the undefended classifier and shows the result to
                 the defended one; `adaptive` attacks through the defense; `transfer` attacks other prompt
                 sets behind the same defense; `oblivious` moves the image embedding, without labels, prompts
                 or defense
    minimal      bracket the smallest radius that breaks the decision, in the norm of the first attack,
                 whatever its radius
    certify      also certify the decision of the defense's votes, or of what it would be with votes; without
                 `sigma` with the defense's own noise
    true_label   what the picture shows; None: the clean decision, which then is to be changed
    target_label the label to reach; None: any other
    eot          draws of a randomized defense averaged in each gradient
    fresh_draws  draws of a randomized defense on which a candidate is judged
    enough       a verified witness within this radius, in the first attack's norm, ends the probe: checks and
                 further attacks are not asked
    self_test    where nothing broke the decision, give the attack problems that have an answer; `standard`
                 and `thorough` ensembles always do
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attacks: Annotated[tuple[AnyAttack, ...], Field(min_length=1, max_length=16)] = Field(
        default_factory=lambda: (default_attack(),)
    )
    score: AnyScoreName = "margin"
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] = ("static", "adaptive")
    minimal: bool = False
    certify: NoiseOptions | None = None
    true_label: str | None = None
    target_label: str | None = None
    eot: int = Field(default=8, ge=1, le=64)
    fresh_draws: int = Field(default=64, ge=1, le=1024)
    seed: int = Field(default=0, ge=0, lt=2**63)
    include: tuple[Include, ...] = ()
    self_test: bool = False
    enough: Annotated[Radius, Field(gt=0)] | None = None

    @property
    def tests_itself(self) -> bool:
        return self.self_test or any(
            isinstance(attack, Ensemble) and attack.preset != "quick" for attack in self.attacks
        )


def certify_options(victim: Victim, options: ProbeOptions) -> CertifyOptions | None:
    """What is to be certified, if anything."""
    if options.certify is None:
        return None
    rule = smoothing_of(victim.defense)
    own = {} if rule is None or "sigma" in options.certify.model_fields_set else {"sigma": rule.sigma}
    denoise = None if rule is None else rule.denoise
    return CertifyOptions.model_validate(
        options.certify.model_dump() | own | {"seed": options.seed, "denoise": denoise}
    )


def modes_of(victim: Victim, options: ProbeOptions) -> tuple[Mode, ...]:
    """Without a defense there is nothing that a static attack would not know: an adaptive one says it all."""
    modes = tuple(dict.fromkeys(options.modes))
    if victim.defense or "static" not in modes:
        return modes
    return tuple(dict.fromkeys("adaptive" if mode == "static" else mode for mode in modes))


def claimed_ball(options: ProbeOptions) -> BallSpec:
    """The largest of the balls in the first attack's norm: what is claimed of it has to hold."""
    first = options.attacks[0].ball
    return max(
        (attack.ball for attack in options.attacks if attack.ball.kind == first.kind),
        key=lambda ball: ball.radius,
    )


def boundless(ball: BallSpec, size: int) -> PGD:
    """An attack that no decision withstands: PGD-10 at 64/255; for L2 the length of that change in every
    value.

    More steps would only make its failure less likely, and M13 asks whether it fails.
    """
    return PGD(ball=farthest(ball, size), steps=10, starts=("random",))


def farthest(ball: BallSpec, size: int) -> BallSpec:
    """The ball of the largest radius that is ever tried, in the norm of this one; `size` is the picture's."""
    return (
        Linf(radius=FARTHEST) if isinstance(ball, Linf) else L2(radius=FARTHEST * math.sqrt(3 * size * size))
    )
