"""`robustclip evaluate`: how often prompt sets are right, clean and attacked, on the same pictures, with the
command that reproduces each number.

With --transfer-matrix it measures what carries over between prompt sets: pictures attacked against set i,
judged under set j. This shows whether the robustness of a learned text is its own. The attack is that of T1
with a set's own prompts in place of the written words. On the diagonal it knows what T2 knows, and goes on
after a first success.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from robustclip.errors import InvalidInput
from robustclip.files import write_atomically
from robustclip.measuring import accuracy
from robustclip.types import Progress
from training.commands import bar, command_parser, keep_freed_memory, print_answer
from training.data.sources import Source
from training.measuring.evaluation.checks import summary
from training.measuring.evaluation.options import epilog, options, read_question
from training.measuring.evaluation.plan import Planned, as_facts, described, plan
from training.measuring.evaluation.question import NO_DEFENSE, Question, Subject, open_subjects
from training.measuring.evaluation.rows import answer
from training.measuring.evaluation.tables import evaluation_page, print_evaluation, print_plan, print_transfer
from training.threats.bank import carried_attack, pixels_against
from training.threats.base import balls
from training.threats.judging import facts_of, judge_made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure prompt sets on labelled pictures, clean and attacked."""
    arguments = command_parser("evaluate", main.__doc__, options(), epilog=epilog()).parse_args(argv)
    question = read_question(arguments)
    keep_freed_memory()
    subjects = open_subjects(question)
    if arguments.transfer_matrix:
        return _transfer(question, subjects, as_json=arguments.json)
    planned = plan(question, subjects, fresh=arguments.fresh)
    if arguments.dry_run:
        return _only_plan(planned, as_json=arguments.json)
    _announce(planned, as_json=arguments.json)
    with bar(quiet=not sys.stderr.isatty()) as progress:
        rows = list(answer(question, subjects, progress=progress, fresh=arguments.fresh))
    evaluation = summary(rows, per_picture=arguments.per_picture)
    if arguments.html is not None:
        write_atomically(arguments.html, evaluation_page(evaluation).encode())
    print_answer(evaluation.as_json(), as_json=arguments.json, show=partial(print_evaluation, evaluation))
    return 0


def _announce(planned: Sequence[Planned], *, as_json: bool) -> None:
    """What is to come, where somebody may read it: not into JSON, and not beside it into a log."""
    if not as_json:
        print(described(planned), flush=True)
    elif sys.stderr.isatty():
        print(described(planned), file=sys.stderr)


def _only_plan(planned: Sequence[Planned], *, as_json: bool) -> int:
    cells, summary = [as_facts(cell) for cell in planned], described(planned)
    answer = {"plan": cells, "charged": sum(cell.charged for cell in planned), "summary": summary}
    print_answer(answer, as_json=as_json, show=partial(print_plan, cells, summary))
    return 0


def _transfer(question: Question, subjects: Sequence[Subject], *, as_json: bool) -> int:
    with bar(quiet=not sys.stderr.isatty()) as progress:
        rows = list(transfer_matrix(question, subjects, progress=progress))
    print_answer({"transfer": rows}, as_json=as_json, show=partial(print_transfer, rows))
    return 0


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
        for judged_under in subjects:
            if _pictures_of(judged_under) != _pictures_of(made_against):
                continue
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


def _pictures_of(subject: Subject) -> tuple[str, Source, int]:
    """What two prompt sets have to share, so that one can be judged on the other's pictures."""
    return subject.backbone, subject.source, subject.pictures.seed
