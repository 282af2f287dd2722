"""`robustclip replay`: stored witnesses, judged under another prompt set or defense, without a server."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustclip.errors import InvalidInput
from service.local.deployed import Deployed, ask_for_decision, load_deployed, parser_of

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from robustclip.models.scoring import Scoring
    from robustclip.reports.replay import Rejudged, Replay
    from robustclip.reports.witnesses import Witness
    from robustclip.types import Features, Logits

_FOOLED = 1
_EXAMPLES = """exit status: 0 no witness fools it (with --against: none anew), 1 some do, 2 bad input

examples:
  robustclip probe photo.jpg --labels cat,dog,bird --json > witnesses/photo.json
  robustclip replay witnesses --prompt-set caltech-advpt
  robustclip replay witnesses/*.json --prompt-set caltech-advpt@3f9c21d07b1e --against caltech-advpt \\
      --store var/prompts
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Judge stored witnesses by another prompt set or defense."""
    parser = parser_of("replay", main.__doc__, _EXAMPLES)
    parser.add_argument(
        "reports",
        type=Path,
        nargs="+",
        metavar="REPORT",
        help="what `robustclip probe --json` or POST /probe answered, or a folder of such files",
    )
    ask_for_decision(parser, scoring="that of each report")
    parser.add_argument(
        "--against", metavar="NAME[@VERSION]", help="count only witnesses that this prompt set withstands"
    )
    parser.add_argument(
        "--draws",
        type=int,
        default=64,
        metavar="N",
        help="draws of a randomized defense that decide by their majority (default: 64)",
    )
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.draws <= 1024:
        raise InvalidInput(f"expected 1 to 1024, found {arguments.draws}.", field="--draws")
    from prompts_store.store import SHIPPED, PromptStore
    from robustclip.reports.replay import newly_fooled
    from robustclip.reports.witnesses import collect

    witnesses, pictureless = collect(arguments.reports)
    if not witnesses:
        raise InvalidInput(
            "there is no witness in these reports.",
            field="REPORT",
            help="Only broken decisions leave one, as a PNG.",
        )
    deployed = load_deployed(arguments)
    replayed = _replayed(deployed, witnesses, draws=arguments.draws, seed=arguments.seed)
    counted = replayed.fooled
    if arguments.against is not None:
        other = PromptStore(arguments.store or SHIPPED, read_only=True).load(arguments.against, deployed.clip)
        before = _replayed(
            deployed._replace(prompt_set=other), witnesses, draws=arguments.draws, seed=arguments.seed
        )
        counted = newly_fooled(replayed, before)
    if arguments.json:
        _print_json(deployed, arguments, replayed, counted, pictureless)
    else:
        _print_table(deployed, arguments, replayed, counted, pictureless)
    return _FOOLED if counted else 0


def _replayed(deployed: Deployed, witnesses: "Sequence[Witness]", *, draws: int, seed: int) -> "Replay":
    from robustclip.defenses import bind_chain
    from robustclip.models.classifier import FeatureExtractor, TorchImageEncoder, zero_shot
    from robustclip.reports.replay import replay

    clip, prompt_set, encoder = deployed.clip, deployed.prompt_set, TorchImageEncoder(deployed.clip)
    encode = FeatureExtractor(encoder, prompt_set.prompts.visual, bind_chain(deployed.defense, encoder))
    randomized = any(part.randomized for part in deployed.defense)

    def judge(features: "Features", labels: tuple[str, ...], scoring: "Scoring") -> "Logits":
        return zero_shot(clip, prompt_set, labels, encoder=encoder, scoring=scoring).judge(features)

    return replay(
        witnesses,
        encode,
        judge,
        size=clip.image_size,
        draws=draws if randomized else 1,
        seed=seed,
        scoring=deployed.scoring,
    )


def _print_json(
    deployed: Deployed,
    arguments: argparse.Namespace,
    replayed: "Replay",
    counted: "Sequence[Rejudged]",
    pictureless: Sequence[str],
) -> None:
    facts = {
        **replayed.model_dump(mode="json", by_alias=True),
        "prompt_set": str(deployed.prompt_set.ref),
        "backbone": deployed.clip.fingerprint,
        "defense": [part.model_dump(mode="json") for part in deployed.defense],
        "seed": arguments.seed,
        "against": arguments.against,
        "counted": [each.source for each in counted],
        "pictureless": pictureless,
    }
    print(json.dumps(facts, ensure_ascii=False))


def _print_table(
    deployed: Deployed,
    arguments: argparse.Namespace,
    replayed: "Replay",
    counted: "Sequence[Rejudged]",
    pictureless: Sequence[str],
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    anew = "" if arguments.against is None else f", {len(counted)} of them anew (not {arguments.against})"
    print(f"{len(replayed.fooled)} of {len(replayed.judged)} witnesses fool {deployed.prompt_set.ref}{anew}")
    table = Table("witness", "made for", "change", "true label", "now taken for", "score", "fooled")
    for each in replayed.judged:
        drawn = "" if each.rate is None else f" ({each.rate.wrong} of {each.rate.draws} draws)"
        fooled = (
            ("anew" if arguments.against is not None and each in counted else "yes") if each.fooled else "no"
        )
        cells = (
            each.source,
            each.found_on,
            f"{each.change:g}/255",
            each.true_label,
            each.label,
            f"{each.probability:.1%}",
            fooled + drawn,
        )
        table.add_row(*map(Text, cells))
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
    for skipped in replayed.skipped:
        print(f"not judged: {skipped.source}: {skipped.reason}")
    for source in pictureless:
        print(f"not judged: {source}: its report holds no PNG that succeeds")
