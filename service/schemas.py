"""What requests may say. Every form of a request (JSON, form data, raw image) ends in one of these models, so
that limits are checked in one place.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustclip.attacks import AnyAttack
from robustclip.attacks.ensemble import Preset
from robustclip.attacks.pgd import MAX_STARTS, MAX_STEPS, PGD
from robustclip.certificates.certify import NoiseOptions
from robustclip.models.scoring import Scoring
from robustclip.probing.options import Include, Mode, ProbeOptions, strong_attack
from robustclip.scores.kinds import AnyScoreName
from robustclip.threat import L2, BallSpec, Linf, Radius
from service.bounds import refuse_large
from service.config import LimitSettings
from service.fields import DefenseChain, EncodedImage, Label, Labels, Seed, SetName
from service.problems import invalid, of_validation

MAX_PROBE_SECONDS = 120
DEFAULT_TOP_K = 5
_DEADLINE = "milliseconds after which nobody wants the answer any more"
Request = TypeVar("Request", bound=BaseModel)
RequestedScoring = Annotated[
    Scoring | None,
    Field(
        description="`softmax`: which of the labels; `sigmoid`: a probability for each, and the answer may "
        "be none of them; absent: what the CLIP was trained with"
    ),
]


def parse(
    model: type[Request], data: Mapping[str, Any], limits: LimitSettings, *, labels: int | None = None
) -> Request:
    """A request from its fields. Raises Problem with a pointer to each value at fault. `labels` caps their
    number below the general limit.
    """
    if labels is not None:
        limits = limits.model_copy(update={"labels": min(labels, limits.labels)})
    refuse_large(data, limits)
    try:
        return model.model_validate(data, context=limits)
    except ValidationError as error:
        raise of_validation(error, data) from error


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassifyRequest(_Request):
    """One picture or several, and the labels to choose from."""

    image: EncodedImage | None = None
    images: tuple[EncodedImage, ...] | None = Field(
        default=None, description="instead of `image`; a bad one fails alone"
    )
    labels: Labels
    prompt_set: SetName | None = Field(default=None, description="absent: the service's default set")
    defense: DefenseChain = "default"
    scoring: RequestedScoring = None
    top_k: int = Field(default=DEFAULT_TOP_K, ge=0, le=100_000, description="predictions to return; 0: all")
    temperature: float | None = Field(
        default=None,
        ge=0.01,
        le=100,
        allow_inf_nan=False,
        description="divides the logits, which carry CLIP's own scale",
    )
    seed: Seed | None = Field(
        default=None, description="of randomised defenses; absent: drawn, and told in the answer"
    )
    deadline_ms: int = Field(default=10_000, ge=100, le=60_000, description=_DEADLINE)

    @model_validator(mode="after")
    def _one_form_of_images(self) -> Self:
        if (self.image is None) == (self.images is None):
            raise invalid(
                "#/image",
                "expected either `image` or `images`.",
                help="Send one picture as `image`, several as `images`.",
            )
        if self.images is not None and not self.images:
            raise invalid("#/images", "expected at least 1 image, found none.")
        return self

    def pictures(self) -> tuple[tuple[str, bytes], ...]:
        """(where it stood, encoded bytes) of every image."""
        if self.images is None:
            return (("#/image", self.image or b""),)
        return tuple((f"#/images/{index}", image) for index, image in enumerate(self.images))


class ProbeRequest(_Request):
    """One decision to attack, through every prompt set and every defense named.

    Either `attacks`, or norm and eps of one: PGD with steps and restarts, or with `preset` the strong attack.
    Prompt sets that are named together lend each other their gradients, to the strong attack and to the mode
    `transfer`.
    """

    image: EncodedImage
    labels: Labels
    scoring: RequestedScoring = None
    true_label: Label | None = Field(
        default=None,
        description="what the picture shows, also `none of these` (sigmoid); absent: the clean decision",
    )
    target_label: Label | None = Field(
        default=None,
        description="the label to reach, also `none of these` (sigmoid); absent: any other",
    )
    prompt_sets: tuple[SetName, ...] | None = Field(
        default=None, min_length=1, description="absent: the service's default set"
    )
    defenses: tuple[DefenseChain, ...] = Field(
        default=((),), min_length=1, description="chains to attack, one report each; absent: none"
    )
    attacks: tuple[AnyAttack, ...] | None = Field(default=None, min_length=1, max_length=16)
    norm: Literal["linf", "l2"] = "linf"
    eps: Radius | None = Field(default=None, description='"4/255" or a number; absent: 4/255 for linf')
    steps: int = Field(default=20, ge=1, le=MAX_STEPS)
    restarts: int = Field(
        default=1, ge=1, le=MAX_STARTS, description="random starts, beside the picture itself"
    )
    preset: Preset | None = Field(default=None, description="the strong attack instead of PGD")
    minimal: bool = Field(
        default=False, description="bracket the smallest radius that breaks the decision, up to 64/255"
    )
    self_test: bool = Field(
        default=False, description="where nothing breaks, give the attack problems that have an answer"
    )
    certify: NoiseOptions | None = Field(
        default=None,
        description="also certify the vote; sigma absent: that of smoothing in the defense, else 0.25",
    )
    loss: AnyScoreName = "margin"
    modes: tuple[Mode, ...] = Field(
        default=("static", "adaptive"), min_length=1, max_length=4, json_schema_extra={"uniqueItems": True}
    )
    eot: int = Field(
        default=8, ge=1, le=64, description="draws of a randomised defense averaged in each gradient"
    )
    fresh_draws: int = Field(
        default=64, ge=1, le=1024, description="draws of a randomised defense on which a candidate is judged"
    )
    seed: Seed = 0
    include: tuple[Include, ...] = Field(default=(), alias="return", json_schema_extra={"uniqueItems": True})
    deadline_ms: int | None = Field(
        default=None,
        ge=1000,
        le=MAX_PROBE_SECONDS * 1000,
        description=f"{_DEADLINE}; absent: the operator's `probe.report_seconds` a report",
    )

    @model_validator(mode="after")
    def _one_way_to_name_attacks(self) -> Self:
        short = sorted(self.model_fields_set & {"norm", "eps", "steps", "restarts", "preset"})
        if self.attacks is not None and short:
            raise invalid(
                f"#/{short[0]}",
                f"expected either `attacks` or `{short[0]}`.",
                help="An attack carries its own ball and steps.",
            )
        if self.preset is not None and (beside := sorted({"steps", "restarts"} & set(short))):
            raise invalid(
                f"#/{beside[0]}",
                f"expected either `preset` or `{beside[0]}`.",
                help="A preset has its own steps.",
            )
        if self.norm == "l2" and self.eps is None:
            raise invalid(
                "#/eps",
                "an L2 ball needs a radius.",
                help="A few units, say 1.0, is visible on small pictures.",
            )
        if len(set(self.modes)) < len(self.modes):
            raise invalid("#/modes", "a mode repeats.")
        if self.norm == "linf" and self.eps is not None and self.eps > 1:
            raise invalid("#/eps", f"expected a radius of at most 1, found {self.eps:g}.")
        return self

    def options(self) -> ProbeOptions:
        """The library's options for every report."""
        return ProbeOptions(
            attacks=self.attacks or (self._short_form(),),
            score=self.loss,
            modes=self.modes,
            minimal=self.minimal,
            certify=self.certify,
            self_test=self.self_test,
            true_label=self.true_label,
            target_label=self.target_label,
            eot=self.eot,
            fresh_draws=self.fresh_draws,
            seed=self.seed,
            include=self.include,
        )

    def _short_form(self) -> AnyAttack:
        radius = 4 / 255 if self.eps is None else self.eps
        ball: BallSpec = L2(radius=radius) if self.norm == "l2" else Linf(radius=radius)
        if self.preset is not None:
            return strong_attack(ball, self.preset)
        return PGD(ball=ball, steps=self.steps, restarts=self.restarts, stop="never")


class ActivateRequest(_Request):
    """The version to serve under this name."""

    version: str = Field(pattern=r"^[0-9a-f]{12}$", examples=["3f9c21d07b1e"])
    force: bool = Field(
        default=False, description="serve it even if stored witnesses fool it anew (store.witnesses)"
    )
