"""Votes, abstention and the bound, against scipy's tests and simulation."""

import pytest
import torch
from scipy import stats
from toys import Purified, drawn_linear

from robustclip.certificates.vote import chance_of_lead, count_votes, draw, elect, lower_bound, smoothing_of
from robustclip.defenses import parse_defenses
from robustclip.defenses.smoothing import Smoothing
from robustclip.seeds import draw_seeds

RULE = Smoothing(sigma=0.25, votes=100, alpha=0.001)


@pytest.mark.parametrize(
    ("first", "second"), [(100, 0), (60, 40), (50, 50), (1, 0), (0, 0), (73, 12), (900, 100), (501, 499)]
)
def test_the_chance_of_a_lead_is_the_binomial_test_s(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert chance_of_lead(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "draws", "alpha"), [(990, 1000, 0.001), (1, 10, 0.05), (10, 10, 0.05), (500, 1000, 0.001)]
)
def test_the_bound_is_the_beta_quantile(hits: int, draws: int, alpha: float) -> None:
    assert lower_bound(hits, draws, alpha=alpha) == pytest.approx(
        stats.beta.ppf(alpha, hits, draws - hits + 1), rel=1e-9
    )
    assert lower_bound(0, draws, alpha=alpha) == 0.0


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.99])
def test_the_bound_is_above_the_truth_no_more_often_than_alpha_allows(probability: float) -> None:
    experiments, alpha = 2000, 0.05
    hits = stats.binom.rvs(200, probability, size=experiments, random_state=1)
    above = sum(lower_bound(int(count), 200, alpha=alpha) > probability for count in hits)
    assert above <= experiments * alpha + 3 * (experiments * alpha) ** 0.5


def test_an_answer_against_the_truth_is_as_rare_as_alpha_says() -> None:
    """Two labels, the first a little likelier: PREDICT may abstain as often as it likes, but must not name
    the second.
    """
    rule = Smoothing(alpha=0.05)
    wins = stats.binom.rvs(100, 0.52, size=2000, random_state=2)
    ballots = [
        elect(torch.tensor([int(count), 100 - int(count)]), ("right", "wrong"), rule) for count in wins
    ]
    answers = [next(iter(ballot.counts)) for ballot in ballots if not ballot.abstained]
    assert 0 < answers.count("wrong") <= 100  # 0.05 of 2000; it happens, which is what alpha means
    assert len(answers) < 500


def test_a_clear_vote_is_an_answer_and_a_close_one_is_none() -> None:
    clear = elect(torch.tensor([2, 95, 3]), ("cat", "dog", "car"), RULE)
    assert list(clear.counts.items()) == [("dog", 95), ("car", 3), ("cat", 2)]
    assert not clear.abstained
    close = elect(torch.tensor([0, 48, 52]), ("cat", "dog", "car"), RULE)
    assert close.abstained
    assert close.counts == {"car": 52, "dog": 48}
    assert close.votes == 100


def test_few_votes_never_convince_a_strict_level() -> None:
    assert elect(torch.tensor([10, 0]), ("cat", "dog"), RULE).abstained
    assert not elect(torch.tensor([11, 0]), ("cat", "dog"), RULE).abstained


def test_votes_are_the_rows_of_the_chain_whatever_the_batches_are() -> None:
    toy = drawn_linear()
    vote = Purified(toy, RULE)
    pixels, seeds = torch.full((3, 32, 32), 0.5), draw_seeds(5, 70)
    heard: list[int] = []
    logits = draw(vote, pixels, seeds, on_rows=heard.append)
    assert heard == [32, 32, 6]
    alone = torch.cat([vote(pixels[None], seed[None]) for seed in seeds])
    assert torch.allclose(logits, alone, atol=1e-5)
    assert torch.equal(count_votes(logits), count_votes(alone))
    assert int(count_votes(logits).sum()) == 70


def test_a_chain_is_put_to_the_vote_if_it_begins_with_smoothing() -> None:
    assert smoothing_of(parse_defenses("smoothing:0.5,jpeg")) == Smoothing(sigma=0.5)
    assert smoothing_of(parse_defenses("jpeg")) is None
    assert smoothing_of(()) is None
