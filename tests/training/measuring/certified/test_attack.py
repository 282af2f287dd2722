"""Attacks on certificates of closed forms: nothing falls inside a radius that is right, and whatever should
fall does.
"""

from typing import NamedTuple

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from toys import GRAY, Purified, gratings, half_spaces, trained_conv

from robustclip.certificates.certify import Certificate, CertifyOptions, certify, noise_seeds
from robustclip.defenses.smoothing import Smoothing
from robustclip.scores.kinds import label_score
from robustclip.seeds import draw_seeds
from robustclip.threat import L2, BallSpec, Linf
from robustclip.types import Classifier, Logits, Pixels, Seeds
from training.measuring.certified.subjects import Assault, Attempt, MeanVote, attack_certificate

SIGMA = 0.05
VOTE = Purified(half_spaces(2 * SIGMA), Smoothing(sigma=SIGMA))
OPTIONS = CertifyOptions(sigma=SIGMA, n=3000)


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return certify(VOTE, GRAY, OPTIONS)


def attempt(
    vote: Classifier,
    pixels: Tensor,
    certificate: Certificate,
    ball: BallSpec,
    *,
    seed: int = 0,
    votes: int = 1000,
) -> Attempt:
    score = label_score("margin", vote, torch.tensor([vote.labels.index(certificate.label)]))
    return attack_certificate(
        score, vote, pixels, certificate, ball, factor=0.99, assault=Assault(), seed=seed, votes=votes
    )


@pytest.mark.parametrize("kind", ["l2", "linf"])
def test_a_half_space_never_falls_inside_its_radius_and_always_well_outside(
    certificate: Certificate, kind: str
) -> None:
    inside, outside = (
        list(Assault(factors=(factor,)).balls(certificate))[kind == "linf"][1]
        for factor in (0.99, 1.5 if kind == "l2" else 1.9)
    )
    assert certificate.covers(inside)
    for seed in range(3):
        held, fallen = (attempt(VOTE, GRAY, certificate, ball, seed=seed) for ball in (inside, outside))
        assert (held.norm, held.fell, held.inside) == (kind, False, True)
        assert held.answer in (certificate.label, None)
        assert (fallen.fell, fallen.inside, fallen.refutes) == (True, False, False)
        assert fallen.answer not in (certificate.label, None)


def test_inside_the_ball_the_attack_finds_the_worst_point_there_is(certificate: Certificate) -> None:
    found = attempt(VOTE, GRAY, certificate, L2(radius=1.8 * SIGMA), votes=4000)
    assert found.distance == pytest.approx(1.8 * SIGMA, rel=1e-4)
    expected = float(torch.special.ndtr(torch.tensor(0.2)))  # a fifth of sigma from the plane is left
    assert found.votes == 4000
    assert abs(found.hits / 4000 - expected) < 0.03


def test_a_clear_majority_is_not_asked_for_all_its_votes_and_a_lost_one_always(
    certificate: Certificate,
) -> None:
    assert attempt(VOTE, GRAY, certificate, L2(radius=0.1 * SIGMA), votes=4000).votes == 100
    assert attempt(VOTE, GRAY, certificate, L2(radius=8 * SIGMA), votes=4000).votes == 4000
    assert attempt(VOTE, GRAY, certificate, L2(radius=8 * SIGMA), votes=60).votes == 60


def test_a_radius_that_says_too_much_is_refuted(certificate: Certificate) -> None:
    overstated = certificate.model_copy(update={"radius_l2": 2 * certificate.radius_l2})
    found = attempt(VOTE, GRAY, overstated, L2(radius=0.99 * overstated.radius_l2))
    assert found.refutes


def test_what_is_only_in_doubt_has_not_fallen(certificate: Certificate) -> None:
    at_the_plane = certificate.model_copy(update={"radius_l2": 2 * SIGMA})
    for seed in range(3):
        found = attempt(VOTE, GRAY, at_the_plane, L2(radius=1.999 * SIGMA), seed=seed, votes=400)
        assert abs(found.hits - 200) < 60
        assert not found.fell


def test_a_network_does_not_fall_inside_its_radii_and_does_far_outside() -> None:
    vote = Purified(trained_conv(), Smoothing(sigma=0.1))
    pixels, _ = gratings(4, seed=41)
    fell: dict[float, list[bool]] = {0.99: [], 8.0: []}
    for picture in pixels:
        found = certify(vote, picture, CertifyOptions(sigma=0.1, n=600))
        assert found.radius_l2 > 0
        for factor, ball in Assault(factors=tuple(fell)).balls(found):
            fell[factor].append(attempt(vote, picture, found, ball, votes=200).fell)
    assert not any(fell[0.99])
    assert sum(fell[8.0]) >= 4


class Heard(NamedTuple):
    """A vote that remembers the seeds it was asked with."""

    vote: Classifier
    seeds: list[int]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.vote.labels

    def __call__(self, pixels: Pixels, seeds: Seeds) -> Logits:
        self.seeds.extend(seeds.tolist())
        return self.vote(pixels, seeds)


def test_who_judges_has_not_seen_the_noise_of_certificate_or_search(certificate: Certificate) -> None:
    searching, judging = Heard(VOTE, []), Heard(VOTE, [])
    score = label_score("margin", searching, torch.tensor([0]))
    asked = 0
    for factor, ball in Assault(factors=(0.5, 0.99)).balls(certificate):
        found = attack_certificate(
            score,
            judging,
            GRAY,
            certificate,
            ball,
            factor=factor,
            assault=Assault(),
            seed=OPTIONS.seed,
            votes=300,
        )
        asked += found.votes
    certifying = torch.cat(noise_seeds(GRAY, OPTIONS)).tolist()
    assert len(judging.seeds) == len({*judging.seeds}) == asked > 400
    assert not {*judging.seeds} & {*searching.seeds}
    assert not ({*judging.seeds} | {*searching.seeds}) & {*certifying}


def test_an_attack_is_the_same_again(certificate: Certificate) -> None:
    once, again = (
        attempt(VOTE, GRAY, certificate, Linf(radius=0.01)).model_copy(update={"seconds": 0.0})
        for _ in range(2)
    )
    assert once == again
    other = attempt(VOTE, GRAY, certificate, Linf(radius=0.01), seed=1)
    assert other.model_copy(update={"seconds": 0.0}) != once


def test_the_mean_vote_counts_lost_votes_and_asks_every_row_by_itself() -> None:
    pixels = torch.stack([GRAY, GRAY - 0.02, GRAY + 0.02])
    seeds = draw_seeds(5, 3)
    score = MeanVote(label_score("margin", VOTE, torch.tensor([0, 0, 1])), 40)
    found = score(pixels, seeds, grad=True)
    assert found.grad is not None
    assert found.cost == (3 * 40, 3 * 40)
    assert found.margin[0] < -0.4 < 0.4 < found.margin[2]
    assert bool((found.margin * 40).frac().abs().max() < 1e-4)
    for row in range(3):
        index = torch.tensor([row])
        alone = score.select(index)(pixels[index], seeds[index], grad=True)
        assert alone.grad is not None
        assert torch.allclose(alone.grad[0], found.grad[row], atol=1e-6)
        assert torch.allclose(alone.value, found.value[index], atol=1e-6)


@pytest.mark.parametrize("margin", [1e-3, 1.0, 1e4])
def test_a_sure_vote_still_has_a_gradient(margin: float) -> None:
    toy = half_spaces(2 * SIGMA)
    sure = Purified(type(toy)(margin * toy.weights, margin * toy.bias), Smoothing(sigma=0.001))
    found = MeanVote(label_score("margin", sure, torch.tensor([0])), 8)(
        GRAY[None], draw_seeds(0, 1), grad=True
    )
    assert found.grad is not None
    assert float(found.grad.norm()) > 0.1


@pytest.mark.parametrize(
    "change",
    [{"factors": ()}, {"factors": (0,)}, {"factors": (101,)}, {"steps": 0}, {"draws": 1}, {"restarts": -1}],
)
def test_attacks_that_mean_nothing_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Assault.model_validate(change)
