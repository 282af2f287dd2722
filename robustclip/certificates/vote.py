"""The decision of a smoothed classifier: a vote over noisy copies, with no answer if it is not significant.

Cohen et al. 2019 (arXiv 1902.02918), section 3.2: PREDICT is `elect`; CERTIFY
(robustclip/certificates/certify.py) uses `lower_bound`.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, Field
from scipy import special
from torch import Tensor

from robustclip.defenses import AnyDefense
from robustclip.defenses.smoothing import Smoothing
from robustclip.seeds import draw_seeds
from robustclip.types import Logits, Pixels, Seeds

VOTES_A_PASS = 32  # rows of one batch


class Ballot(BaseModel, frozen=True, extra="forbid"):
    """How the draws of one picture voted, and whether that is enough for an answer."""

    sigma: float
    votes: int
    counts: dict[str, int] = Field(description="votes by label, most first; labels without votes are absent")
    alpha: float
    p_value: float = Field(
        description="how often the two best labels would be this far apart if both were equally likely"
    )
    abstained: bool = Field(description="the p-value is above alpha: there is no answer")


def smoothing_of(chain: Sequence[AnyDefense]) -> Smoothing | None:
    """The smoothing that a chain begins with, if it does: then the chain is served by votes."""
    first = chain[0] if chain else None
    return first if isinstance(first, Smoothing) else None


def vote_seeds(seed: int, rule: Smoothing | None) -> Seeds:
    """[V] seeds of the votes on a picture with this seed; without smoothing the seed itself."""
    return torch.tensor([seed]) if rule is None else draw_seeds(seed, rule.votes)


def draw(
    ask: Callable[[Pixels, Seeds], Tensor],
    pixels: Tensor,
    seeds: Seeds,
    *,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Tensor:
    """[V, ...] what `ask` returns for one picture [3, S, S] under each of the seeds [V], in batches.

    `on_rows` is called with the number of rows of each batch.
    """
    answers: list[Tensor] = []
    for chunk in seeds.split(VOTES_A_PASS):
        answers.append(ask(pixels.expand(len(chunk), -1, -1, -1), chunk))
        on_rows(len(chunk))
    return torch.cat(answers)


def count_votes(logits: Logits) -> Tensor:
    """[C] int64: how many rows of [V, C] prefer each label."""
    return logits.argmax(dim=1).bincount(minlength=logits.shape[1])


def elect(counts: Tensor, labels: Sequence[str], rule: Smoothing) -> Ballot:
    """PREDICT: the label with the most votes [C], or none if the runner-up might have won.

    The test is a two-sided binomial one at `rule.alpha`. An answer is the smoothed classifier's with
    probability 1 - alpha.
    """
    votes: list[int] = counts.tolist()
    order: list[int] = counts.argsort(descending=True, stable=True).tolist()
    named = {labels[index]: votes[index] for index in order if votes[index]}
    first, second = votes[order[0]], votes[order[1]]
    p_value = chance_of_lead(first, second)
    return Ballot(
        sigma=rule.sigma,
        votes=sum(votes),
        counts=named,
        alpha=rule.alpha,
        p_value=p_value,
        abstained=p_value > rule.alpha,
    )


def chance_of_lead(first: int, second: int) -> float:
    """The chance that two equally likely labels differ by at least as much in as many votes."""
    return min(1.0, 2 * float(special.bdtr(second, first + second, 0.5)))


def lower_bound(hits: int, draws: int, *, alpha: float) -> float:
    """Clopper and Pearson's one-sided bound: too high with probability alpha at most."""
    return float(special.betaincinv(hits, draws - hits + 1, alpha)) if hits else 0.0
