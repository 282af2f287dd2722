"""The decision of a smoothed classifier: a vote over noisy copies of the picture, and silence where the votes
prove nothing.

Cohen et al. 2019 (arXiv 1902.02918), section 3.2: PREDICT is `elect`, and `lower_bound` is what CERTIFY
(robustclip/certificates/certify.py) rests on.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import special
from torch import Tensor

from robustclip.defenses import AnyDefense
from robustclip.defenses.smoothing import Smoothing
from robustclip.seeds import draw_seeds
from robustclip.types import Logits, Pixels, Seeds

VOTES_A_PASS = 32  # rows of one batch


class Ballot(BaseModel):
    """How the draws of one picture voted, and whether that is enough for an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sigma: float
    votes: int
    counts: dict[str, int] = Field(description="votes by label, most first; labels without any are left out")
    alpha: float
    p_value: float = Field(
        description="how often the two best labels would be this far apart if both were equally likely"
    )
    abstained: bool = Field(description="the p-value is above alpha: there is no answer")


def smoothing_of(chain: Sequence[AnyDefense]) -> Smoothing | None:
    """The rule by which a chain is to be served: votes, if it begins with smoothing."""
    first = chain[0] if chain else None
    return first if isinstance(first, Smoothing) else None


def vote_seeds(seed: int, rule: Smoothing | None) -> Seeds:
    """[V] the seeds of the votes on a picture that has this one; itself where nothing is voted."""
    return torch.tensor([seed]) if rule is None else draw_seeds(seed, rule.votes)


def draw(
    ask: Callable[[Pixels, Seeds], Tensor],
    pixels: Tensor,
    seeds: Seeds,
    *,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> Tensor:
    """[V, ...] what `ask` says of one picture [3, S, S] under each of the seeds [V], in batches; `on_rows`
    hears how many rows each had.
    """
    drawn: list[Tensor] = []
    for chunk in seeds.split(VOTES_A_PASS):
        drawn.append(ask(pixels.expand(len(chunk), -1, -1, -1), chunk))
        on_rows(len(chunk))
    return torch.cat(drawn)


def count_votes(logits: Logits) -> Tensor:
    """[C] int64: how many rows of [V, C] prefer each label."""
    return logits.argmax(dim=1).bincount(minlength=logits.shape[1])


def elect(counts: Tensor, labels: Sequence[str], rule: Smoothing) -> Ballot:
    """PREDICT: the label with the most of the votes [C], or none when the runner-up might have won (two-sided
    binomial test at `rule.alpha`).

    An answer is the smoothed classifier's own with probability 1 - alpha.
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
    """The chance that two equally likely sides part at least as far as `first` >= `second` in as many
    votes.
    """
    return min(1.0, 2 * float(special.bdtr(second, first + second, 0.5)))


def lower_bound(hits: int, draws: int, *, alpha: float) -> float:
    """Clopper and Pearson's one-sided bound: below the true probability of a hit in at least 1 - alpha of all
    experiments.
    """
    return float(special.betaincinv(hits, draws - hits + 1, alpha)) if hits else 0.0
