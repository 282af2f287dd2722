"""Stored witnesses, judged by another decision: which of them fool it, too? One forward pass a picture, no
attack.

A decision that withstands a replay withstood old attacks on another decision: a regression test, no claim of
robustness.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from pydantic import BaseModel, Field

from robustclip.errors import InvalidInput, ReportRefused
from robustclip.measuring import wilson
from robustclip.models.scoring import Scoring, outcomes, scores_of
from robustclip.reports.report import Rate
from robustclip.reports.witnesses import Witness
from robustclip.seeds import derive, draw_seeds
from robustclip.types import Embed, Features, Logits, Seeds

ROWS = 64  # pictures a pass where nobody else needs the device

# Raises InvalidInput for labels and a scoring that the decision can't take.
FeatureClassifier: TypeAlias = Callable[[Features, tuple[str, ...], Scoring], Logits]


class Rejudged(BaseModel, frozen=True, extra="forbid"):
    """A decision about one witness. `fooled`: it does not say `true_label`, or says `target_label`
    where that was the goal.

    `probability` is that of `label`, for a randomized defense as `label` itself the mean over the draws;
    `rate` is how many of them were fooled.
    """

    source: str
    sha256: str
    found_on: str = Field(description="the prompt set that it was made to fool")
    attack: str
    knowledge: str
    change: float = Field(description="largest change of a value, in 8-bit levels")
    true_label: str
    target_label: str | None
    label: str
    probability: float
    fooled: bool
    rate: Rate | None
    scoring: Scoring = "softmax"


class Skipped(BaseModel, frozen=True, extra="forbid"):
    """A witness whose labels or scoring the decision can't take."""

    source: str
    reason: str


class Replay(BaseModel, frozen=True, extra="forbid", populate_by_name=True):
    """All witnesses, judged by one decision."""

    schema_: Literal["robustclip.replay/1"] = Field(
        default="robustclip.replay/1", alias="schema", serialization_alias="schema"
    )
    judged: tuple[Rejudged, ...]
    skipped: tuple[Skipped, ...]

    @property
    def fooled(self) -> tuple[Rejudged, ...]:
        """Those that fool it, smallest change first."""
        return tuple(sorted((each for each in self.judged if each.fooled), key=lambda each: each.change))


def replay(
    witnesses: Sequence[Witness],
    encode: Embed,
    judge: FeatureClassifier,
    *,
    size: int,
    draws: int = 1,
    seed: int = 0,
    rows: int = ROWS,
    scoring: Scoring | None = None,
) -> Replay:
    """Judge stored pictures of `size` by a deployed chain, in passes of at most `rows`.

    `encode` is the chain up to the features and `judge` what follows for a list of labels, so that the image
    tower runs once, whatever the labels. Each picture is judged under `scoring`, or that of its own report.
    `draws` of a randomized defense decide by their majority, with the Wilson interval; fooled means that its
    lower end is above one half. A picture's draws depend on `seed` alone, not on the other pictures. Raises
    as `check_size`.
    """
    check_size(witnesses, size)
    if not witnesses:
        return Replay(judged=(), skipped=())
    row = draw_seeds(seed, 1)
    features = [
        torch.cat([_pass(encode, chunk, derive(row, f"fresh-{draw}")) for chunk in _chunks(witnesses, rows)])
        for draw in range(draws)
    ]
    drawn = torch.stack(features, dim=1)  # [N, draws, E]
    judged: list[Rejudged] = []
    skipped: list[Skipped] = []
    for index, witness in enumerate(witnesses):
        try:
            victim, how = witness.report.victim, scoring or witness.report.victim.scoring
            judged.append(_rejudged(witness, judge(drawn[index], victim.labels, how), how))
        except InvalidInput as error:
            skipped.append(Skipped(source=witness.source, reason=str(error)))
    return Replay(judged=tuple(judged), skipped=tuple(skipped))


def check_size(witnesses: Sequence[Witness], size: int) -> None:
    """ReportRefused, naming the report, for a picture that a backbone of `size` pixels can't see as it is."""
    for witness in witnesses:
        if witness.levels.shape[-1] != size:
            raise ReportRefused(
                f"it was made at {witness.levels.shape[-1]} pixels, this backbone sees {size}.",
                field=witness.source,
                help="Probe this backbone; a resized witness is another picture.",
            )


def newly_fooled(candidate: Replay, current: Replay) -> tuple[Rejudged, ...]:
    """Witnesses that fool the candidate and do not fool what is served now, smallest change first."""
    stood = {each.source for each in current.judged if not each.fooled}
    return tuple(each for each in candidate.fooled if each.source in stood)


def _chunks(witnesses: Sequence[Witness], rows: int) -> list[Sequence[Witness]]:
    return [witnesses[start : start + rows] for start in range(0, len(witnesses), rows)]


def _pass(encode: Embed, witnesses: Sequence[Witness], seed: Seeds) -> Features:
    pixels = torch.stack([witness.levels for witness in witnesses]).to(torch.float32) / 255
    with torch.no_grad():
        return encode(pixels, seed.repeat(len(witnesses)))


def _rejudged(witness: Witness, logits: Logits, scoring: Scoring) -> Rejudged:
    """From the [draws, C] logits of one picture. Raises InvalidInput for a question about an outcome that
    does not exist under this scoring.
    """
    question, record = witness.report.input, witness.record
    labels = outcomes(witness.report.victim.labels, scoring)
    for named in (question.true_label, question.target_label):
        if named is not None and named not in labels:
            raise InvalidInput(f"a {scoring} decision never says {named!r}.", field="scoring")
    answers = [labels[index] for index in logits.argmax(dim=-1).tolist()]
    wrong = [
        label == question.target_label if question.goal == "reach_target" else label != question.true_label
        for label in answers
    ]
    rate = None
    if len(answers) > 1:
        _, low, high = wilson(sum(wrong), len(wrong))
        rate = Rate(wrong=sum(wrong), draws=len(wrong), low=low, high=high)
    mean = logits.mean(dim=0)
    best = int(mean.argmax())
    return Rejudged(
        source=witness.source,
        sha256=record.witness_sha256 or "",
        found_on=witness.report.victim.prompt_set,
        attack=record.kind,
        knowledge=record.knowledge,
        change=record.linf_levels,
        true_label=question.true_label,
        target_label=question.target_label,
        label=labels[best],
        probability=scores_of(mean, scoring)[best].item(),
        fooled=wrong[0] if rate is None else rate.low > 0.5,
        rate=rate,
        scoring=scoring,
    )
