"""What carries over between prompt sets: pictures attacked against set i, judged under set j. Is the
robustness of a learned text its own?

The attack is that of T1 with a set's own prompts in place of the written words; its diagonal knows what T2
knows, and stops later.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from robustclip.errors import InvalidInput
from robustclip.measuring import accuracy
from robustclip.threat import Linf, radius_text
from robustclip.types import Progress
from training.measuring.evaluation.question import NO_DEFENSE, Question
from training.measuring.evaluation.rows import Subject
from training.threats.judging import judge_made
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
    for eps in question.eps:
        if eps <= 0:
            raise InvalidInput(
                "expected a radius above 0 for an attack, found 0.",
                field="--eps",
                help='Write it like "4/255".',
            )
    for made_against in subjects:
        for eps in question.eps:
            attack, pictures = carried_attack(eps), made_against.pictures
            made = pixels_against(
                made_against.clip,
                made_against.prompts,
                pictures.data,
                pictures.indices,
                attack,
                seed=pictures.seed,
                folder=pictures.cache,
                progress=progress,
                what=f"against {made_against.prompt_set} {radius_text(eps)}",
            )
            for judged_under in (other for other in subjects if _comparable(made_against, other)):
                what = f"{made_against.prompt_set} under {judged_under.prompt_set} {radius_text(eps)}"
                ball = Linf(radius=eps)
                measured = judge_made(
                    judged_under.clip,
                    judged_under.classifier,
                    judged_under.pictures,
                    made,
                    ball,
                    progress=progress,
                    what=what,
                )
                share = accuracy(measured.correct)
                yield {
                    "backbone": made_against.backbone,
                    "data": made_against.source.name,
                    "split": made_against.source.split,
                    "eps": radius_text(eps),
                    "seed": pictures.seed,
                    "n": len(measured.correct),
                    "made_against": made_against.prompt_set,
                    "judged_under": judged_under.prompt_set,
                    "accuracy": share.value,
                    "low": share.low,
                    "high": share.high,
                    "accuracy_8bit": accuracy(measured.correct_8bit).value,
                    "attack": {**attack.model_dump(mode="json"), "score": "cross_entropy"},
                }


def _comparable(first: Subject, second: Subject) -> bool:
    return (first.backbone, first.source, first.pictures.seed) == (
        second.backbone,
        second.source,
        second.pictures.seed,
    )
