"""Certificates against closed forms, against attacks, and against themselves by another path."""

import math

import pytest
import torch
from pydantic import ValidationError
from scipy import special
from toys import GRAY, Purified, gratings, half_spaces, trained_conv

from robustclip.attacks.pgd import PGD
from robustclip.certificates.certify import (
    Certificate,
    CertifyOptions,
    certify,
    certify_features,
    conclude,
    noise_seeds,
    noisy_classifier,
    noisy_features,
)
from robustclip.certificates.vote import count_votes, draw, elect
from robustclip.defenses import parse_defenses
from robustclip.defenses.smoothing import Smoothing
from robustclip.errors import InvalidInput, invalid_input
from robustclip.models.classifier import zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.scores.kinds import label_score
from robustclip.scores.wrappers import averaged
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, Linf
from robustclip.types import Pixels

SIGMA = 0.05  # the picture of the linear toy is ten of these away from the box: its clamp does nothing there


def certified(distance: float, **options: float) -> Certificate:
    return certify(
        Purified(half_spaces(distance), Smoothing(sigma=SIGMA)),
        GRAY,
        CertifyOptions.model_validate({"n": 2000, **options, "sigma": SIGMA}),
    )


def test_of_a_half_space_nearly_the_true_distance_is_certified_and_never_more() -> None:
    found = [certified(2 * SIGMA, n=5000, seed=seed) for seed in range(4)]
    assert {certificate.label for certificate in found} == {"label 0"}
    for certificate in found:
        assert 0.9 * 2 * SIGMA < certificate.radius_l2 <= 2 * SIGMA
        assert certificate.radius_linf == pytest.approx(certificate.radius_l2 / math.sqrt(48))


def test_the_votes_of_a_half_space_are_as_many_as_the_normal_distribution_says() -> None:
    certificate = certified(SIGMA, n=5000)
    expected = float(special.ndtr(1.0))
    assert abs(certificate.hits / 5000 - expected) < 4 * math.sqrt(expected * (1 - expected) / 5000)


def test_near_the_plane_nothing_is_certified() -> None:
    certificate = certified(0.02 * SIGMA)
    assert certificate.abstained
    assert certificate.radius_l2 == certificate.radius_linf == 0.0
    assert not certificate.covers(L2(radius=0))


def test_a_known_vote_gives_the_known_radius() -> None:
    certificate = conclude(
        torch.tensor([3, 97]), torch.tensor([10, 990]), ("cat", "dog"), 48, CertifyOptions(sigma=0.25, n=1000)
    )
    assert certificate.label == "dog"
    assert certificate.share == pytest.approx(0.97604, abs=1e-5)
    assert certificate.radius_l2 == pytest.approx(0.49450, abs=1e-5)


def test_the_first_votes_choose_and_only_fresh_ones_count() -> None:
    options = CertifyOptions(n=1000)
    other = conclude(torch.tensor([60, 40]), torch.tensor([10, 990]), ("cat", "dog"), 48, options)
    assert (other.label, other.hits, other.abstained) == ("cat", 10, True)
    none = conclude(torch.tensor([60, 40]), torch.tensor([0, 1000]), ("cat", "dog"), 48, options)
    assert (none.share, none.abstained) == (0.0, True)


def test_no_draw_serves_twice() -> None:
    options, other = CertifyOptions(n0=50, n=200), torch.zeros_like(GRAY)
    seeds = [
        part
        for picture in (GRAY, other)
        for portion in (0, 1)
        for part in noise_seeds(picture, options, portion=portion)
    ]
    assert len(torch.cat(seeds).unique()) == 4 * 250
    longer = noise_seeds(GRAY, CertifyOptions(n0=60, n=300))
    assert torch.equal(longer[1][:200], seeds[1])


def test_a_certificate_covers_what_is_nearer_than_its_radius() -> None:
    certificate = certified(2 * SIGMA)
    assert certificate.covers(L2(radius=certificate.radius_l2 * 0.999))
    assert not certificate.covers(L2(radius=certificate.radius_l2))
    assert certificate.covers(Linf(radius=certificate.radius_linf * 0.999))
    assert not certificate.covers(Linf(radius=certificate.radius_l2))


def fresh_answer(vote: Purified, pixels: Pixels, seed: int, rule: Smoothing) -> str | None:
    """What the smoothed rule answers, None if it abstains."""
    ballot = elect(count_votes(draw(vote, pixels, draw_seeds(seed, rule.votes))), vote.labels, rule)
    return None if ballot.abstained else next(iter(ballot.counts))


def test_no_attack_through_the_smoothed_rule_succeeds_inside_a_certified_radius_but_far_outside_it_does() -> (
    None
):
    rule = Smoothing(sigma=0.1, votes=200)
    vote = Purified(trained_conv(), rule)
    pixels, _ = gratings(6, seed=41)
    options = CertifyOptions(sigma=rule.sigma, n=1000)
    certificates = [certify(vote, picture, options) for picture in pixels]
    proven = [index for index, certificate in enumerate(certificates) if not certificate.abstained]
    assert len(proven) >= 4
    radii = torch.tensor([certificates[index].radius_l2 for index in proven])
    assert float(radii.min()) > 0
    labels = [certificates[index].label for index in proven]
    chosen = torch.tensor([vote.labels.index(label) for label in labels])
    score = averaged(label_score("margin", vote, chosen), 4)

    def answers(factor: float) -> list[str | None]:
        found: list[str | None] = []
        for row, index in enumerate(proven):
            attack = PGD(ball=L2(radius=float(radii[row]) * factor), steps=10, stop="never")
            attacked = attack(
                score.select(torch.tensor([row])), pixels[index : index + 1], draw_seeds(7 + row, 1)
            ).pixels
            found.append(fresh_answer(vote, attacked[0], 1000 + row, rule))
        return found

    assert all(answer in (label, None) for answer, label in zip(answers(0.99), labels, strict=True))
    assert any(answer not in (label, None) for answer, label in zip(answers(8), labels, strict=True))


@pytest.mark.parametrize("denoise", [None, "tiny"])
@pytest.mark.parametrize("denoiser", ["none", "bit_depth:4,resize_pad"])
def test_features_that_were_kept_give_the_same_votes_as_asking_the_classifier(
    tiny: Clip, denoiser: str, denoise: str | None
) -> None:
    links = parse_defenses(denoiser)
    options = CertifyOptions(sigma=1.0, n0=20, n=90)
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    lists = [("cat", "dog"), ("wolf", "cat", "teapot"), ("a", "b", "c", "d", "e")]
    classifiers = [
        zero_shot(tiny, prompts, labels)
        for labels in lists
        for prompts in (Prompts(), Prompts(templates=("{} at night.",)))
    ]
    kept = noisy_features(
        noisy_classifier(classifiers[0], options.sigma, links, denoise=denoise), picture, options
    )
    split = 0
    for classifier in classifiers:
        direct = certify(
            noisy_classifier(classifier, options.sigma, links, denoise=denoise), picture, options
        )
        assert certify_features(classifier, kept, picture.numel(), options) == direct
        split += 0 < direct.hits < options.n
    assert split  # else all votes are alike and the comparison says nothing


def test_a_denoiser_that_knows_the_noise_makes_every_vote_that_of_the_picture(
    tiny: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))

    class Oracle:
        def __call__(self, noisy: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
            signal = (1 / (1 + (2 * levels).exp())).sqrt()[
                :, None, None, None
            ]  # levels are log(noise / signal)
            return (noisy / signal - (2 * picture - 1)) / levels.exp()[:, None, None, None]

    monkeypatch.setattr("robustclip.purifiers.open_denoiser", lambda weights, *, like, time: Oracle())
    classifier = zero_shot(tiny, Prompts(), ("cat", "dog", "car"))
    options = CertifyOptions(sigma=1.0, n0=8, n=60, denoise="tiny")
    found = certify(noisy_classifier(classifier, 1.0, denoise="tiny"), picture, options)
    assert found.hits == 60
    assert found.label == classifier.labels[int(classifier(picture[None], draw_seeds(0, 1)).argmax())]


def test_statements_asked_for_at_once_share_alpha(tiny: Clip) -> None:
    options = CertifyOptions(sigma=0.1, n0=8, n=32, alpha=0.01)
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    classifier = zero_shot(tiny, Prompts(), ("cat", "dog"))
    kept = noisy_features(noisy_classifier(classifier, 0.1), picture, options)
    alone, among = (
        certify_features(classifier, kept, picture.numel(), options, statements=count) for count in (1, 5)
    )
    assert among.alpha == pytest.approx(0.002)
    assert among.hits == alone.hits
    assert among.share < alone.share


def test_a_denoiser_that_adds_the_noise_again_is_refused(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="already") as refusal:
        noisy_classifier(zero_shot(tiny, Prompts(), ("cat", "dog")), 0.25, parse_defenses("smoothing"))
    assert refusal.value.field == "defense/0"


def test_the_global_generator_is_neither_read_nor_written() -> None:
    state = torch.random.get_rng_state()
    once = certified(SIGMA, n=64)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert certified(SIGMA, n=64) == once
    assert certified(SIGMA, n=64, seed=1) != once


@pytest.mark.parametrize(
    ("change", "field"),
    [
        *[({"sigma": sigma}, "sigma") for sigma in (0, -0.25, math.nan, math.inf, 1e9, None)],
        *[({"n": n}, "n") for n in (0, -1, 2.5, 1_000_001, "many")],
        *[({"n0": n}, "n0") for n in (0, 10_001)],
        *[({"alpha": alpha}, "alpha") for alpha in (0, 0.5, -1, math.nan)],
        *[({"seed": seed}, "seed") for seed in (-1, 2**63)],
        ({"votes": 100}, "votes"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        CertifyOptions.model_validate(change)
    assert invalid_input(refusal.value, change).field == field


def test_progress_is_heard(tiny: Clip) -> None:
    heard: list[int] = []
    vote = noisy_classifier(zero_shot(tiny, Prompts(), ("cat", "dog")), 0.25)
    certify(
        vote,
        torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1)),
        CertifyOptions(n0=40, n=33),
        on_rows=heard.append,
    )
    assert heard == [32, 8, 32, 1]
