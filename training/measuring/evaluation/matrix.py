"""What carries over between prompt sets: pictures attacked against set i, judged under set j. It shows
whether the robustness of a learned text is its own.

The attack is that of T1 with a set's own prompts in place of the written words. On the diagonal it knows what
T2 knows, and goes on after a first success.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from robustclip.errors import InvalidInput
from robustclip.measuring import accuracy
from robustclip.types import Progress
from training.measuring.evaluation.question import NO_DEFENSE, Question
from training.measuring.evaluation.subjects import Subject
from training.threats.base import balls
from training.threats.judging import facts_of, judge_made
from training.threats.transfers import carried_attack, pixels_against


def transfer_matrix(
    question: Question, subjects: Sequence[Subject], *, progress: Progress
) -> Iterator[dict[str, Any]]:
    """A row for every two prompt sets on the same pictures, and each with itself. InvalidInput behind a
    defense, which the attack can't know.
    """
    if question.defenses != (NO_DEFENSE,):
        raise InvalidInput(
            "the transfer matrix is about prompts alone.", field="--defense", help="Leave the defense out."
        )
    for made_against, within in itertools.product(subjects, balls(question)):
        attack = carried_attack(within.bounds)
        made = pixels_against(
            made_against.clip,
            made_against.prompts,
            made_against.pictures,
            attack,
            progress=progress,
            what=f"against {made_against.prompt_set} {within.text}",
        )
        for judged_under in (other for other in subjects if _comparable(made_against, other)):
            what = f"{made_against.prompt_set} under {judged_under.prompt_set} {within.text}"
            measured = judge_made(judged_under, made, within.bounds, progress, what)
            share = accuracy(measured.correct)
            yield {
                "backbone": made_against.backbone,
                "data": made_against.source.name,
                "split": made_against.source.split,
                "eps": within.text,
                "seed": made_against.pictures.seed,
                "n": len(measured.correct),
                "made_against": made_against.prompt_set,
                "judged_under": judged_under.prompt_set,
                "accuracy": share.value,
                "low": share.low,
                "high": share.high,
                "accuracy_8bit": accuracy(measured.correct_8bit).value,
                "attack": facts_of(attack, score="cross_entropy"),
            }


def _comparable(first: Subject, second: Subject) -> bool:
    return (first.backbone, first.source, first.pictures.seed) == (
        second.backbone,
        second.source,
        second.pictures.seed,
    )
