"""`robustclip classify`: decisions on this machine, without a server, through the same library calls as the
service.
"""

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
    import torch

    from robustclip.certificates.vote import count_votes, draw, elect, smoothing_of, vote_seeds
    from robustclip.defenses import bind_chain
    from robustclip.models.classifier import Defended, TorchImageEncoder, zero_shot
    from robustclip.seeds import draw_seeds

    labels, deployed = labels_of(arguments), load_deployed(arguments)
    encoder = TorchImageEncoder(deployed.clip)
    classifier = Defended(
        zero_shot(deployed.clip, deployed.prompt_set.prompts, labels, encoder=encoder),
        bind_chain(deployed.defense, encoder),
    )
    rule = smoothing_of(deployed.defense)
    seeds = vote_seeds(int(draw_seeds(arguments.seed, 1)), rule)
    for path in arguments.pictures:
        with torch.inference_mode():
            logits = draw(classifier, read_pixels(path, deployed.clip), seeds)
        ballot = None if rule is None else elect(count_votes(logits), labels, rule)
        scores = logits[0].softmax(dim=0) if rule is None else count_votes(logits) / rule.votes
        best = scores.topk(min(arguments.top_k, len(labels)))
        predictions = [
            (labels[index], score)
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        if arguments.json:
            found = [
                {"label": label, "score": score}
                for label, score in predictions
                if ballot is None or not ballot.abstained
            ]
            voted = {} if ballot is None else {"smoothing": ballot.model_dump()}
            print(
                json.dumps(
                    {"image": str(path), "prompt_set": str(deployed.prompt_set.ref), "predictions": found}
                    | voted
                )
            )
        elif ballot is not None and ballot.abstained:
            votes = ", ".join(f"{label} {count}" for label, count in ballot.counts.items())
            print(
                f"{path}  abstains: {votes} of {ballot.votes} votes prove no majority  "
                f"({deployed.prompt_set.ref})"
            )
        else:
            print(
                f"{path}  "
                + "  ".join(f"{label} {score:.1%}" for label, score in predictions)
                + f"  ({deployed.prompt_set.ref})"
            )
    return 0
