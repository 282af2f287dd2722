"""`robustclip train`: learn a prompt set on labelled pictures and publish it."""

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from robustclip.models import load_clip
from training.commands import command_parser, working
from training.learning.tuning.config import TrainSettings, add_options, read_settings
from training.learning.tuning.run import Trained, open_run, open_training, train

EXAMPLES = """examples:
  robustclip train --objective.kind advpt --data pictures/caltech-101 --shots 16 --name caltech-advpt \\
      --objective.eps 1/255
  robustclip train --objective.kind coop --data pictures/caltech-101 --name caltech-coop --activate
  robustclip train --objective.kind capt --data pictures/caltech-101 --shots 16 --name caltech-capt \\
      --objective.eps 2/255 --validate-at clean,T2
  robustclip train --selection capt-alpha.json --data pictures/caltech-101 --shots 16 --name caltech-capt
  robustclip train --objective.kind fap --data pictures/caltech-101 --shots 16 --name caltech-fap-base \\
      --classes base
"""
GUESSES = (
    "  NO BETTER THAN A GUESS on held-out pictures: lower --objective.learning_rate or "
    "--objective.eps, or give more shots"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Learn a prompt set on labelled pictures and publish it."""
    parser = command_parser("train", main.__doc__, {}, epilog=EXAMPLES)
    add_options(parser)
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    arguments = vars(parser.parse_args(argv))
    as_json: bool = arguments.pop("as_json")
    settings = read_settings(arguments)
    hidden = as_json and not sys.stderr.isatty()
    with working(settings.device, parts=settings.accumulate, quiet=hidden) as (processes, progress):
        pictures = open_training(settings.data, settings.classes)
        run = open_run(
            settings, load_clip(settings.backbone, settings.pretrained, device=processes.device), pictures
        )
        borrowed = settings.borrowed(run.clip)
        if borrowed is not None and processes.main:
            print(f"{borrowed}: choose them there with robustclip select", file=sys.stderr)
        trained = train(run, processes, progress=progress)
    if trained is None:
        return 0
    report = {**_report(trained, settings), "borrowed": borrowed}
    print(json.dumps(report, indent=2) if as_json else _text(report))
    return 0


def _report(trained: Trained, settings: TrainSettings) -> dict[str, Any]:
    account, last = trained.account, trained.fitted.history[-1]
    return {
        "ref": str(trained.ref),
        "active": settings.activate,
        "store": str(settings.store),
        "report": str(trained.page),
        "pictures": account.pictures,
        "epochs": len(trained.fitted.history),
        "loss": last.loss,
        "training_accuracy": last.accuracy,
        "attacked_training_accuracy": last.robust,
        "averaged": trained.averaged,
        "restarts": trained.fitted.restarts,
        "guesses": trained.guesses,
        "results": [result.model_dump(mode="json") for result in trained.results],
        "companions": {
            name: [result.model_dump(mode="json") for result in found]
            for name, found in account.companions.items()
        },
        "preparing": {**trained.preparing._asdict(), "seconds": account.preparing_seconds},
        "tuning": {"text_passes": trained.fitted.text_passes, "seconds": account.tuning_seconds},
        "whole_run": {**account.cost._asdict(), "text_passes": account.text_passes},
    }


def _text(report: dict[str, Any]) -> str:
    named = {"": report["results"], **{f"{name}: ": found for name, found in report["companions"].items()}}
    validated = [
        f"  {name}{found['threat']:<5} "
        f"{'' if found['threat'] == 'clean' else 'at ' + found['eps'] + ' '}{found['accuracy']:.1%} "
        f"[{found['low']:.1%}, {found['high']:.1%}] of {found['n']} held-out pictures"
        for name, results in named.items()
        for found in results
    ]
    accuracies = {
        "training accuracy": report["training_accuracy"],
        "attacked": report["attacked_training_accuracy"],
    }
    learned = ", ".join(
        [
            f"loss {report['loss']:.3f}",
            *(f"{what} {value:.1%}" for what, value in accuracies.items() if value is not None),
        ]
    )
    preparing, tuning, whole = report["preparing"], report["tuning"], report["whole_run"]
    return "\n".join(
        [
            f"published {report['ref']} in {report['store']}{', active' if report['active'] else ''}",
            f"  {report['epochs']} epochs on {report['pictures']} pictures: {learned}",
            *(
                [f"  collapsed and began again {report['restarts']} time(s): see the report"]
                if report["restarts"]
                else []
            ),
            *validated,
            *([GUESSES] if report["guesses"] else []),
            f"  took {whole['forward']} forward and {whole['backward']} backward image passes, "
            f"{whole['text_passes']} text passes; "
            f"{preparing['seconds']:.0f} s preparing, {tuning['seconds']:.0f} s tuning",
            f"  report: {report['report']}",
            *(
                []
                if report["active"]
                else [
                    f"  serve it: robustclip prompts activate {report['ref']} --store "
                    f"{shlex.quote(report['store'])}"
                ]
            ),
        ]
    )
