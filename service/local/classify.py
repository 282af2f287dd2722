"""`robustclip classify`: decisions without a server, by the same library calls as the service."""

import json
from collections.abc import Sequence

from robustclip.errors import InvalidInput
from service.local.deployed import (
    ask_for_decision,
    ask_for_pictures,
    labels_of,
    load_deployed,
    parser_of,
    read_pixels,
)

_EXAMPLES = """examples:
  robustclip classify photo.jpg --labels cat,dog,bird
  robustclip classify *.jpg --labels cat,dog,bird --prompt-set handcrafted-ensemble --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Classify pictures among labels, without a server."""
    parser = parser_of("classify", main.__doc__, _EXAMPLES)
    ask_for_pictures(parser, count="+")
    ask_for_decision(parser)
    parser.add_argument(
        "--top-k", type=int, default=3, metavar="N", help="labels to show, best first (default: 3)"
    )
    arguments = parser.parse_args(argv)
    if arguments.top_k < 1:
        raise InvalidInput(f"expected 1 or more, found {arguments.top_k}.", field="--top-k")
    labels, deployed = labels_of(arguments.labels), load_deployed(arguments)
    classifier = deployed.over(labels)
    for path in arguments.pictures:
        answer = classifier(read_pixels(path, deployed.clip), seed=arguments.seed)
        ballot, predictions = answer.ballot, answer.predictions[: arguments.top_k]
        if arguments.json:
            found = [
                {"label": label, "score": score} for label, score in predictions if answer.label is not None
            ]
            voted = {} if ballot is None else {"smoothing": ballot.model_dump()}
            facts: dict[str, object] = {
                "image": str(path),
                "prompt_set": str(deployed.prompt_set.ref),
                "scoring": answer.scoring,
                "predictions": found,
            }
            if answer.scoring == "sigmoid":
                facts["none_of_these"] = answer.none_of_these and answer.label is not None
            print(json.dumps(facts | voted))
        elif ballot is not None and ballot.abstained:
            votes = ", ".join(f"{label} {count}" for label, count in ballot.counts.items())
            print(
                f"{path}  abstains: {votes} of {ballot.votes} votes prove no majority  "
                f"({deployed.prompt_set.ref})"
            )
        else:
            print(
                f"{path}  "
                + f"{answer.label}:  " * answer.none_of_these
                + "  ".join(f"{label} {score:.1%}" for label, score in predictions)
                + f"  ({deployed.prompt_set.ref})"
            )
    return 0
