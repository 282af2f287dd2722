"""`robustclip evaluate`: how often prompt sets are right, clean and attacked, on the same pictures, with the
command that reproduces each number.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from robustclip.files import write_atomically
from training.measuring.evaluation.matrix import transfer_matrix
from training.measuring.evaluation.options import add_options, epilog, read_question
from training.measuring.evaluation.plan import Planned, as_facts, described, plan
from training.measuring.evaluation.question import Question
from training.measuring.evaluation.rows import answer
from training.measuring.evaluation.subjects import Subject, open_subjects
from training.measuring.evaluation.summary import summary
from training.measuring.evaluation.tables import print_evaluation, print_plan, print_transfer
from training.memory import keep_freed_memory
from training.progress import bar


def main(argv: Sequence[str] | None = None) -> int:
    """Measure prompt sets on labelled pictures, clean and attacked."""
    parser = argparse.ArgumentParser(
        prog="robustclip evaluate",
        description=main.__doc__,
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    arguments = parser.parse_args(argv)
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
        from training.measuring.evaluation.page import evaluation_page

        write_atomically(arguments.html, evaluation_page(evaluation).encode())
    if arguments.json:
        print(json.dumps(evaluation.as_json()))
    else:
        print_evaluation(evaluation)
    return 0


def _announce(planned: Sequence[Planned], *, as_json: bool) -> None:
    """What is to come, where somebody may read it: not into JSON, and not beside it into a log."""
    if not as_json:
        print(described(planned), flush=True)
    elif sys.stderr.isatty():
        print(described(planned), file=sys.stderr)


def _only_plan(planned: Sequence[Planned], *, as_json: bool) -> int:
    summary = described(planned)
    if as_json:
        print(
            json.dumps(
                {
                    "plan": [as_facts(cell) for cell in planned],
                    "charged": sum(cell.charged for cell in planned),
                    "summary": summary,
                }
            )
        )
    else:
        print_plan([as_facts(cell) for cell in planned], summary)
    return 0


def _transfer(question: Question, subjects: Sequence[Subject], *, as_json: bool) -> int:
    with bar(quiet=not sys.stderr.isatty()) as progress:
        rows = list(transfer_matrix(question, subjects, progress=progress))
    if as_json:
        print(json.dumps({"transfer": rows}))
    else:
        print_transfer(rows)
    return 0
