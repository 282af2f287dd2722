"""What `import robustclip` offers beside the library's own nouns: a probe, a certificate, an attack and a
measurement in one call each, with results that a notebook shows.
"""

import base64
import io
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple, TypeAlias

import torch
from PIL import Image
from pydantic import PrivateAttr, ValidationError
from torch import Tensor, nn

from robustclip.attacks import AnyAttack
from robustclip.attacks.ensemble import Preset
from robustclip.attacks.events import Meter
from robustclip.certificates.certify import CertifyOptions
from robustclip.certificates.vote import smoothing_of
from robustclip.deployed import DeployedClassifier, Picture
from robustclip.errors import InvalidInput, invalid_input
from robustclip.images import load_pixels, pixels_to_png
from robustclip.measuring import ONE_ANSWER, Interval, Jury, LabelledBatch, accuracy
from robustclip.measuring import measure as measure_batches
from robustclip.probing.options import ProbeOptions
from robustclip.probing.records import certificate_of
from robustclip.probing.run import probe as run_probe
from robustclip.reports.charts import Bar, bars
from robustclip.reports.pages import probe_page
from robustclip.reports.report import CertificatePart, ProbeReport
from robustclip.reports.witnesses import best_record
from robustclip.reports.wording import certificate_words
from robustclip.scores.kinds import AnyScoreName, label_score
from robustclip.scores.wrappers import averaged
from robustclip.seeds import derive, draw_seeds
from robustclip.threat import BallSpec
from robustclip.types import DIRECT, Attack, Attacked, Classifier, Logits, Pixels, Score, Seeds

Attackable: TypeAlias = DeployedClassifier | Classifier | nn.Module


class ShownReport(ProbeReport):
    """A probe report that shows itself: as its verdict, in a notebook as its page."""

    _clean: bytes = PrivateAttr()  # the attacked picture as PNG
    _call: str = PrivateAttr()

    @classmethod
    def of(cls, report: ProbeReport, clean: Pixels, call: str) -> "ShownReport":
        """`clean` [3, S, S] is the attacked picture, `call` what makes the report again."""
        shown = cls.model_validate(dict(report))
        shown._clean, shown._call = pixels_to_png(clean), call
        return shown

    @property
    def witness(self) -> Image.Image | None:
        """The least conspicuous picture that changes the decision, as the classifier sees it; None where no
        8-bit picture does.
        """
        record = best_record(self)
        if record is None or not record.success_8bit or record.adversarial_png is None:
            return None
        return Image.open(io.BytesIO(base64.b64decode(record.adversarial_png)))

    def __str__(self) -> str:
        return f"{self.verdict.value}: {self.verdict.sentence}"

    def _repr_html_(self) -> str:
        clean = load_pixels(self._clean, self.input.resolution[0])
        page = probe_page(self, clean=clean, picture="this picture", command=self._call)
        style = "width:100%;height:44em"
        return f'<iframe title="probe report" style="{style}" srcdoc="{escape(page)}"></iframe>'


class ShownCertificate(CertificatePart):
    """A certificate that shows itself: in words, in a notebook with its votes."""

    def __str__(self) -> str:
        return certificate_words(self)

    def _repr_html_(self) -> str:
        votes = Bar(self.label, self.hits / self.n, f"{self.hits} of {self.n} votes")
        return bars(str(self), [votes, Bar("at least", self.share, f"{self.share:.1%}")])


class Accuracy(NamedTuple):
    """Which pictures are classified rightly: `correct` [n], and `correct_8bit` [n] as PNG."""

    correct: Tensor
    correct_8bit: Tensor

    @property
    def interval(self) -> Interval:
        """The share of right answers with its 95 % interval."""
        return accuracy(self.correct)

    def __str__(self) -> str:
        value, low, high = self.interval
        return f"{value:.1%} of {len(self.correct)} right (95 % interval {low:.1%} to {high:.1%})"

    def _repr_html_(self) -> str:
        return bars(str(self), [Bar("right", self.interval.value, f"{self.interval.value:.1%}")])


def probe(
    classifier: DeployedClassifier,
    picture: Picture,
    *,
    eps: float | str | None = None,
    preset: Preset | None = None,
    attacks: Sequence[AnyAttack] | None = None,
    against: Sequence[DeployedClassifier] = (),
    seconds: float | None = None,
    **options: Any,
) -> ShownReport:
    """Attack a deployed decision about one picture, through its defense.

    eps      the Linf radius in pixel units, such as "4/255" (the default) or 0.0157
    preset   `quick`, `standard` or `thorough`: the strong attack instead of PGD
    attacks  instead of both: attacks with their balls, such as `PGD(ball=L2(radius=0.5))`
    against  other prompt sets over the same labels, whose gradients are tried too
    seconds  after which the report is made from the results so far
    options  any other field of `robustclip.probing.options.ProbeOptions`, such as `true_label`, `minimal`

    Raises InvalidInput for options that don't fit together or to the classifier.
    """
    if attacks is not None and (eps is not None or preset is not None):
        raise InvalidInput("found beside eps or preset.", field="attacks", help="Give one of them.")
    ball = {"kind": "linf", "radius": "4/255" if eps is None else eps}
    strong, pgd = {"kind": "ensemble", "preset": preset}, {"kind": "pgd", "steps": 20, "stop": "never"}
    short_form = {"ball": ball, **(pgd if preset is None else strong)}
    values: dict[str, Any] = {
        "attacks": (short_form,) if attacks is None else tuple(attacks),
        "include": ("adversarial", "curve", "heat"),
        **options,
    }
    try:
        chosen = ProbeOptions.model_validate(values)
    except ValidationError as error:
        raise invalid_input(error, values) from error
    pixels = classifier.pixels(picture)
    meter = Meter() if seconds is None else Meter(deadline=time.monotonic() + seconds)
    report = run_probe(classifier, pixels, chosen, sources=against, meter=meter)
    words = {"eps": eps, "preset": preset, **options}
    call = "".join(f", {name}={value!r}" for name, value in words.items() if value is not None)
    return ShownReport.of(report, pixels, f"robustclip.probe(classifier, picture{call})")


def certify(
    classifier: DeployedClassifier, picture: Picture, *, sigma: float | None = None, **options: Any
) -> ShownCertificate:
    """Certify the vote over noisy copies of a picture: within the stated radius no change turns it.

    The plain decision is never certified. `sigma` is the size of the noise, by default that of smoothing in
    the classifier's defense, else 0.25; `options` are those of
    `robustclip.certificates.certify.CertifyOptions`: `n` votes, `n0` to choose the label, `alpha`, `seed`,
    `denoise`. Raises InvalidInput for what does not fit.
    """
    rule = smoothing_of(classifier.defense)
    rule_options = {} if rule is None else {"sigma": rule.sigma, "denoise": rule.denoise}
    values = rule_options | options | ({} if sigma is None else {"sigma": sigma})
    try:
        chosen = CertifyOptions.model_validate(values)
    except ValidationError as error:
        raise invalid_input(error, values) from error
    part = certificate_of(classifier, classifier.pixels(picture), chosen, access=DIRECT, meter=Meter())
    return ShownCertificate.model_validate(dict(part))


def attack(
    classifier: Attackable,
    pixels: Pixels,
    targets: Tensor,
    attack: Attack,
    *,
    loss: AnyScoreName = "margin",
    eot: int = 8,
    seed: int = 0,
) -> Attacked:
    """Attack pictures [B, 3, H, W] in [0, 1], so that their labels `targets` [B] lose.

    classifier  a module from pixels to logits [B, C] in eval mode, or any classifier of this library
    attack      such as `PGD(ball=Linf(radius=4 / 255), steps=20)`
    eot         draws of a randomized defense in each gradient

    The result's `margin` above 0 says that a target lost. Raises InvalidInput for a module in training mode,
    and for a defense that no gradient passes.
    """
    torch_classifier = _classifier(classifier, pixels)
    score = _score(classifier, torch_classifier, targets, loss, eot)
    return attack(score, pixels, draw_seeds(seed, len(pixels)))


def measure(
    classifier: Attackable,
    batches: Iterable[tuple[Pixels, Tensor]],
    *,
    attack: Attack | None = None,
    ball: BallSpec | None = None,
    loss: AnyScoreName = "margin",
    eot: int = 8,
    seed: int = 0,
) -> Accuracy:
    """How many pictures are classified rightly, after an attack if one is given.

    batches  pixels [B, 3, H, W] in [0, 1] with the indices [B] of the right labels
    ball     where rounding an attacked picture to 8 bits has to stay; by default that of the attack

    Pictures that are wrong untouched count as wrong and are not attacked. Each answer after an attack is
    another forward pass with other draws. Arguments and errors otherwise as in `attack`.
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise InvalidInput("expected pictures, found none.", field="batches")
    torch_classifier = _classifier(classifier, first[0])
    seeded = (
        LabelledBatch(pixels, targets, derive(draw_seeds(seed, len(pixels)), f"batch-{index}"))
        for index, (pixels, targets) in enumerate(itertools.chain([first], iterator))
    )
    rule = smoothing_of(classifier.defense) if isinstance(classifier, DeployedClassifier) else None
    measured = measure_batches(
        torch_classifier,
        seeded,
        attack=attack,
        score=None
        if attack is None
        else lambda inner, targets: _score(classifier, inner, targets, loss, eot),
        ball=ball or getattr(attack, "ball", None),
        jury=ONE_ANSWER if rule is None else Jury.of(rule),
    )
    return Accuracy(measured.correct, measured.correct_8bit)


@dataclass(frozen=True, eq=False)
class ModuleClassifier:
    """A torch module from pixels to logits as a classifier; the labels are the numbers of its outputs."""

    module: nn.Module
    labels: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module, pixels: Pixels) -> "ModuleClassifier":
        """Learns the number of labels from one picture of [B, 3, H, W]. Raises InvalidInput for a module in
        training mode or without logits [B, C].
        """
        if any(part.training for part in module.modules()):
            raise InvalidInput(
                "the module is in training mode, where pictures of a batch may change each other's answers.",
                field="classifier",
                help="Call eval() first.",
            )
        with torch.no_grad():
            logits = module(pixels[:1])
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InvalidInput("expected a module that gives logits [B, C].", field="classifier")
        return cls(module, tuple(str(index) for index in range(logits.shape[1])))

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        return self.module(pixels)


def _classifier(classifier: Attackable, pixels: Pixels) -> Classifier:
    if isinstance(classifier, DeployedClassifier):
        return classifier.reference
    return ModuleClassifier.of(classifier, pixels) if isinstance(classifier, nn.Module) else classifier


def _score(
    attacked: Attackable, classifier: Classifier, targets: Tensor, loss: AnyScoreName, eot: int
) -> Score:
    score = label_score(loss, classifier, targets)
    if not isinstance(attacked, DeployedClassifier):
        return score
    defense = attacked.reference.defense
    if defense.gradient == "none":
        raise InvalidInput(
            "no gradient passes this defense.", field="classifier", help="robustclip.probe goes past it."
        )
    return averaged(score, eot) if defense.randomized and eot > 1 else score
