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
    from robustclip.types import Pixels


class Deployed(NamedTuple):
    """How pictures are decided, whatever the labels."""

    clip: "Clip"
    prompt_set: "PromptSet"
    defense: "tuple[AnyDefense, ...]"

    def over(self, labels: tuple[str, ...]) -> "DeployedClassifier":
        """The decision between these labels. Raises InvalidInput as `robustclip.deployed.deploy`."""
        from robustclip.deployed import deploy

        return deploy(self.clip, self.prompt_set, labels, defense=self.defense)


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
        help='what to choose from, two or more: a,b or "a cat, sitting",b or a JSON list',
    )


def ask_for_decision(parser: argparse.ArgumentParser) -> None:
    """The options that name a decision."""
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
        "--backbone",
        default=DEFAULT_BACKBONE,
        metavar="ARCH",
        help="an embedded CLIP or an open_clip architecture (default: %(default)s)",
    )
    parser.add_argument(
        "--pretrained", metavar="TAG|FILE", help="its weights, for architectures of open_clip"
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

    check_labels(labels := split_labels(text))
    return labels


def load_deployed(arguments: argparse.Namespace) -> Deployed:
    """The decision that the options name. Raises RobustClipError that names the option at fault."""
    from prompts_store.store import SHIPPED, PromptStore
    from robustclip.defenses import parse_defenses
    from robustclip.models.clip import load_clip

    defense = parse_defenses(arguments.defense, field="--defense")
    clip = load_clip(arguments.backbone, arguments.pretrained)
    store = PromptStore(arguments.store or SHIPPED, read_only=True)
    return Deployed(clip, store.load(arguments.prompt_set, clip), defense)


def read_pixels(path: Path, clip: "Clip") -> "Pixels":
    """[3, S, S] pixels of a picture file, - being standard input."""
    from robustclip.images import load_pixels

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.", field="PICTURE") from error
    return load_pixels(data, clip.image_size)
