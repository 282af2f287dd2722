"""What the commands without a server share: the options that name a decision, and reading a picture."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robustclip import DEFAULT_BACKBONE
from robustclip.errors import InvalidInput

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from prompts_store.manifest import PromptSet
    from robustclip.defenses import AnyDefense
    from robustclip.deployed import DeployedClassifier
    from robustclip.models.clip import Clip
    from robustclip.models.scoring import Scoring
    from robustclip.types import Pixels


class Deployed(NamedTuple):
    """How pictures are decided, whatever the labels. `scoring`: as was requested, None for the usual one."""

    clip: "Clip"
    prompt_set: "PromptSet"
    defense: "tuple[AnyDefense, ...]"
    scoring: "Scoring | None" = None

    def over(self, labels: tuple[str, ...]) -> "DeployedClassifier":
        """The decision between these labels. Raises InvalidInput as `robustclip.deployed.deploy`."""
        from robustclip.deployed import deploy

        return deploy(self.clip, self.prompt_set, labels, defense=self.defense, scoring=self.scoring)


def parser_of(name: str, summary: str | None, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"robustclip {name}",
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def ask_for_pictures(parser: argparse.ArgumentParser, *, count: str | None) -> None:
    """Pictures and labels; `count` as argparse's nargs."""
    parser.add_argument(
        "pictures",
        type=Path,
        nargs=count,
        metavar="PICTURE",
        help="a JPEG, PNG or WebP file; - is standard input",
    )
    parser.add_argument(
        "--labels",
        required=True,
        metavar="A,B,C",
        help='what to choose from: a,b or "a cat, sitting",b or a JSON list; two or more, under --scoring '
        "sigmoid one",
    )


def ask_for_decision(
    parser: argparse.ArgumentParser, *, scoring: str = "what the backbone was trained with"
) -> None:
    """The options that name a decision; `scoring`: what its default is, in words."""
    parser.add_argument(
        "--prompt-set", default="handcrafted", metavar="NAME[@VERSION]", help="default: handcrafted"
    )
    parser.add_argument(
        "--defense",
        default="none",
        metavar="CHAIN",
        help="such as jpeg:75,bit_depth:4,resize_pad (default: none)",
    )
    parser.add_argument(
        "--scoring",
        choices=("softmax", "sigmoid"),
        help="softmax: which of the labels; sigmoid: a probability for each, and the answer may be none of "
        f"them (default: {scoring})",
    )
    parser.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        metavar="ARCH",
        help="an embedded CLIP or an open_clip architecture (default: %(default)s)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="TAG|FILE",
        help="its weights, for architectures of open_clip; TAG=FILE, +FILE: see the README",
    )
    parser.add_argument(
        "--store", type=Path, metavar="PATH", help="a store of prompt sets (default: those that are shipped)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="decides all randomness (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def labels_of(text: str) -> tuple[str, ...]:
    """The labels of an option. Raises InvalidInput as `split_labels` and `check_labels`."""
    from robustclip.models.labels import check_labels, split_labels

    check_labels(labels := split_labels(text), least=1)  # whether one is enough depends on the scoring
    return labels


def load_deployed(arguments: argparse.Namespace) -> Deployed:
    """The decision that the options name. Raises RobustClipError that names the option at fault."""
    from prompts_store.store import SHIPPED, PromptStore
    from robustclip.defenses import parse_defenses
    from robustclip.models.clip import load_clip
    from robustclip.models.scoring import scoring_for

    defense = parse_defenses(arguments.defense, field="--defense")
    clip = load_clip(arguments.backbone, arguments.pretrained)
    scoring_for(clip, arguments.scoring, field="--scoring")
    store = PromptStore(arguments.store or SHIPPED, read_only=True)
    return Deployed(clip, store.load(arguments.prompt_set, clip), defense, arguments.scoring)


def read_pixels(path: Path, clip: "Clip") -> "Pixels":
    """[3, S, S] pixels of a picture file, - being standard input."""
    from robustclip.images import load_pixels

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.", field="PICTURE") from error
    return load_pixels(data, clip.preprocessing)
