"""A probe of a vote: judged by votes, certified by votes, and never more than that."""

from dataclasses import replace

import pytest
import torch
from probing import picture, victim
from pydantic import ValidationError
from toys import LinearClassifier, Purified

from robustclip.attacks.events import Meter
from robustclip.attacks.pgd import PGD
from robustclip.certificates.certify import CertifyOptions, certify, noisy_classifier
from robustclip.defenses import parse_defenses
from robustclip.defenses.smoothing import Smoothing
from robustclip.deployed import DeployedClassifier
from robustclip.errors import invalid_input
from robustclip.models.clip import Clip
from robustclip.probing.conclusion import describe_victim
from robustclip.probing.events import Certified
from robustclip.probing.options import ProbeOptions, certify_options
from robustclip.probing.plan import charged_passes
from robustclip.probing.records import certificate_of
from robustclip.probing.run import events, probe
from robustclip.probing.served import Aim, Served
from robustclip.probing.verdict import reach_verdict, worst
from robustclip.reports.report import CertificatePart, ProbeReport
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, Linf
from robustclip.types import DIRECT, Pixels

RULE = Smoothing(sigma=0.05, votes=40)


def options(radius: float = 1e-3, **changes: object) -> ProbeOptions:
    asked = {
        "attacks": (PGD(ball=L2(radius=radius), steps=2),),
        "eot": 2,
        "certify": {"n": 300, "n0": 30},
        "modes": ("adaptive",),
    }
    return ProbeOptions.model_validate(asked | changes)


def voting(clip: Clip, **changes: object) -> DeployedClassifier:
    chain = parse_defenses([RULE.model_copy(update=changes), "bit_depth:6"])
    return replace(victim(clip, labels=("cat", "dog")), defense=chain)


def proven(clip: Clip) -> Pixels:
    """A picture whose votes at the rule's sigma are clear."""
    for seed in range(20):
        pixels = picture(clip, seed)
        subject = voting(clip)
        found = certify(
            noisy_classifier(subject.classifier(subject.serving), RULE.sigma, subject.defense[1:]),
            pixels,
            CertifyOptions(sigma=0.05, n=300),
        )
        if found.radius_l2 > 0.01:
            return pixels
    raise AssertionError("no picture of twenty is certified")


@pytest.fixture(scope="module")
def certified(tiny: Clip) -> tuple[Pixels, ProbeReport]:
    pixels = proven(tiny)
    return pixels, probe(voting(tiny), pixels, options())


def test_where_copies_are_denoised_before_they_vote_that_vote_is_certified(tiny: Clip) -> None:
    subject, pixels = voting(tiny, denoise="tiny"), picture(tiny)
    asked = certify_options(subject, options())
    assert asked is not None
    assert (asked.sigma, asked.denoise) == (RULE.sigma, "tiny")
    parts = [
        certificate_of(subject, pixels, each, access=DIRECT, meter=Meter())
        for each in (asked, asked.model_copy(update={"denoise": None}))
    ]
    assert [part.served for part in parts] == [True, False]
    assert describe_victim(subject).digest != describe_victim(voting(tiny)).digest


def test_a_served_vote_is_certified_within_its_radius(
    tiny: Clip, certified: tuple[Pixels, ProbeReport]
) -> None:
    pixels, report = certified
    assert report.verdict.value == "certified"
    assert "No change up to 0.001 (L2) turns the vote" in report.verdict.sentence
    subject = voting(tiny)
    vote = noisy_classifier(subject.classifier(subject.serving), RULE.sigma, subject.defense[1:])
    expected = certify(vote, pixels, CertifyOptions(sigma=RULE.sigma, n=300, n0=30))
    assert report.certificate == CertificatePart(**expected.model_dump(), served=True)
    assert report.charged <= charged_passes(subject, options())
    assert not report.input.clean.abstained
    assert report.input.clean.probability * RULE.votes == pytest.approx(
        round(report.input.clean.probability * RULE.votes)
    )
    assert ProbeReport.model_validate_json(report.model_dump_json(by_alias=True)) == report


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        (
            {"attacks": (PGD(ball=L2(radius=1e-3), steps=2), PGD(ball=L2(radius=0.5), steps=2))},
            True,
        ),  # farther than the certificate reaches
        ({"attacks": (PGD(ball=Linf(radius=0.01), steps=2),)}, True),
        ({"certify": {"n": 300, "n0": 30, "sigma": 0.06}}, False),  # another rule than the one that is served
        ({"certify": {"n": 8, "n0": 30}}, True),  # too few votes for any certificate
        ({"certify": None}, None),
    ],
)
def test_what_is_not_covered_by_the_served_rule_is_not_called_certified(
    tiny: Clip, certified: tuple[Pixels, ProbeReport], changes: dict[str, object], served: bool | None
) -> None:
    report = probe(voting(tiny), certified[0], options(**changes))
    assert report.verdict.value != "certified"
    assert (report.certificate and report.certificate.served) is served


def test_a_certificate_of_a_rule_that_is_not_served_is_told_and_counts_for_nothing(
    tiny: Clip, certified: tuple[Pixels, ProbeReport]
) -> None:
    report = probe(
        victim(tiny, "bit_depth:6", ("cat", "dog")),
        certified[0],
        options(certify={"n": 300, "n0": 30, "sigma": 0.05}),
    )
    assert report.certificate is not None
    assert not report.certificate.served
    assert report.certificate.hits == certified[1].certificate.hits  # type: ignore[union-attr]
    assert report.verdict.value != "certified"


def test_facts_beat_certificates_and_certificates_beat_the_rest(
    certified: tuple[Pixels, ProbeReport],
) -> None:
    report = certified[1]

    def verdict(success: bool, **changes: object) -> str:
        records = [
            record.model_copy(update={"success": success, "success_8bit": success})
            for record in report.attacks
        ]
        found = reach_verdict(
            report.input,
            records,
            (),
            balls=[L2(radius=1e-3)],
            charged=0,
            cut="deadline",
            certificate=report.certificate.model_copy(update=changes),  # type: ignore[union-attr]
        )
        return found.value

    assert verdict(success=True) == "broken"
    assert verdict(success=False) == "certified"
    assert verdict(success=False, label="another") == "inconclusive"
    assert (
        worst(
            [
                report,
                report.model_copy(
                    update={
                        "verdict": report.verdict.model_copy(update={"value": "not-broken-within-budget"})
                    }
                ),
            ]
        )
        != "certified"
    )


def test_a_probe_tells_of_its_certificate(tiny: Clip, certified: tuple[Pixels, ProbeReport]) -> None:
    told = [event for event in events(voting(tiny), certified[0], options()) if isinstance(event, Certified)]
    assert [event.certificate for event in told] == [certified[1].certificate]


def judged(distance: float, aim: Aim) -> tuple[bool, bool]:
    """Whether a vote at that distance from the plane between two labels reaches the aim, and whether it
    abstains.
    """
    normal = torch.zeros(48)
    normal[0] = 1.0
    toy = LinearClassifier(torch.stack([normal, -normal]), torch.tensor([-0.5, 0.5]))
    pixels = torch.full((1, 3, 4, 4), 0.5)
    pixels[0, 0, 0, 0] += distance
    rule = Smoothing(sigma=0.05, votes=200)
    served = Served(Purified(toy, rule), True, rule.votes, draw_seeds(3, 1), Meter(), rule)
    return served.judged(pixels, aim).reached, served.decision(
        served.opinion(served.logits(pixels, "clean")), aim.truth
    ).abstained


def test_a_vote_is_judged_by_its_answer_and_abstaining_is_none() -> None:
    assert judged(0.1, Aim(truth=0)) == (False, False)
    assert judged(-0.1, Aim(truth=0)) == (True, False)
    assert judged(-0.1, Aim(truth=0, goal=1)) == (True, False)
    assert judged(0.001, Aim(truth=0)) == judged(-0.001, Aim(truth=0)) == (False, True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"sigma": 0}, "sigma"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"alpha": 1}, "alpha"),
        ({"seed": 1}, "seed"),
    ],
)
def test_noise_that_means_nothing_is_refused_by_name(change: dict[str, object], field: str) -> None:
    asked = {"certify": change}
    with pytest.raises(ValidationError) as refusal:
        ProbeOptions.model_validate(asked)
    assert invalid_input(refusal.value, asked).field == f"certify/{field}"


def test_the_votes_are_on_the_bill(tiny: Clip) -> None:
    subject, plain = voting(tiny), options(certify=None)
    assert charged_passes(subject, options()) == charged_passes(subject, plain) + 330
    assert charged_passes(voting(tiny, votes=80), plain) > charged_passes(subject, plain)
