"""The options of `robustclip evaluate`, and the question that they mean."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from robustclip import DEFAULT_BACKBONE
from robustclip.errors import InvalidInput
from robustclip.models import HANDCRAFTED_TEMPLATE, check_template
from training.commands import (
    DEFAULT_RUNS,
    Option,
    check_device,
    default_store,
    flag,
    one,
    read_fields,
    several,
    words,
    words_but,
)
from training.data.presets import facts, preset_sources
from training.measuring.evaluation.question import DATA_TEMPLATE, EVERY_SEED, NO_DEFENSE, Question
from training.threats import THREAT_LEVELS
from training.threats.base import Effort, threat_level

_EPILOG = f"""Several values of --backbone, --prompt-set, --data, --classes, --threat, --eps, --seed (with
commas, or the option repeated) and --defense (repeated) multiply. Prompt sets under the same condition are
compared picture by picture; a difference whose interval contains 0 is none.
What was measured is kept below --runs: a killed evaluation goes on where it was, and a wider question pays
only for what is new.

threats:
{{threats}}

examples:
  robustclip evaluate --prompt-set handcrafted --data pictures/caltech-101 --threat clean,T0,T2 \\
      --eps 2/255 --limit 256
  robustclip evaluate --prompt-set handcrafted,caltech-apt-{EVERY_SEED} --seed 0,1,2 \\
      --data pictures/caltech-101 --threat T1,T2,T3 --dry-run
  robustclip evaluate --prompt-set handcrafted,caltech-advpt --data pictures/caltech-101 --threat T2 \\
      --defense none --defense jpeg:75,bit_depth:4
  robustclip evaluate --prompt-set handcrafted,caltech-advpt --data pictures/caltech-101 \\
      --classes base,new --among these --threat clean,T2
  robustclip evaluate --preset local --data pictures --prompt-set handcrafted,data-template \\
      --threat clean,T2 --limit 256
  robustclip evaluate --prompt-set handcrafted,caltech-advpt,caltech-coop --data pictures/caltech-101 \\
      --transfer-matrix --eps 1/255 --limit 128
"""
_OPTIONS = {
    "backbones": "backbone",
    "prompt_sets": "prompt-set",
    "threats": "threat",
    "defenses": "defense",
    "seeds": "seed",
    "surrogates": "surrogate",
}


def epilog() -> str:
    """What stands below the options in the help: what multiplies, a line for each threat level, examples."""
    lines = [f"  {name:<9}  {threat_level(name).knows}" for name in THREAT_LEVELS]
    return _EPILOG.format(threats="\n".join(fill(line, 110, subsequent_indent=" " * 13) for line in lines))


def options() -> dict[str, Option]:
    """Every option of the command."""
    effort = ("strength", "steps", "restarts", "draws", "queries", "search")
    fields = Effort.model_fields
    return {
        "--backbone": several(
            DEFAULT_BACKBONE, "an embedded CLIP, an open_clip architecture, or hf-hub:owner/repository"
        ),
        "--pretrained": one(None, "open_clip tag or weights file of an architecture that is not embedded"),
        "--prompt-set": several(
            "handcrafted",
            'NAME, NAME@VERSION, or a template such as "a photo of a {}." (on its own: repeat the option); '
            f"a {EVERY_SEED} in a name is the seed; "
            f"{DATA_TEMPLATE} is what --template or the preset says",
        ),
        "--data": several(
            None,
            "folder of Parquet files with classes.txt, or of class folders of pictures, or torchvision:NAME; "
            "with --preset, what holds them",
        ),
        "--preset": several(
            "none", f"data sets, splits and words of the literature: {', '.join(facts().presets)}"
        ),
        "--only": several("all", "with --preset, some of its data sets"),
        "--download": flag("with --preset: let torchvision fetch what --data does not hold"),
        "--split": one(
            "test",
            "without --preset, a split of the data; train:validation is the tenth of train that training "
            "holds out; all: class folders without splits",
        ),
        "--classes": several(
            "all of them",
            "base or new, the two halves of the labels, or a file of class names, one a line, `name` or "
            "`name = other words`",
        ),
        "--among": one(
            "all", "with --classes, the labels to choose from: all of the data set's, or only these"
        ),
        "--template": several(
            HANDCRAFTED_TEMPLATE,
            "without --preset, what T1 takes for the learned text; repeat it for an average",
            metavar="WORDS",
        ),
        "--threat": several("clean", f"of {', '.join(THREAT_LEVELS)}"),
        "--eps": several("1/255", "radius of the attack (Linf, pixel units)"),
        "--defense": several(NO_DEFENSE, "one chain, such as jpeg:75,bit_depth:4", metavar="CHAIN"),
        "--seed": several("0", "all randomness of attacks and defenses"),
        **{f"--{name}": one(fields[name].default, fields[name].description or "") for name in effort},
        "--surrogate": several("none", fields["surrogates"].description or ""),
        "--scoring": {
            "choices": ("softmax", "sigmoid"),
            "default": "softmax",
            "help": "sigmoid, for a CLIP that was trained with one: each label has a probability of its own, "
            "and where none reaches a half the answer is none of them, which is wrong (default: softmax, "
            "which of the labels, as the literature asks)",
        },
        "--limit": one(0, "at most so many pictures, classes balanced, the same for every seed; 0 takes all"),
        "--batch": one(64, "pictures a batch"),
        "--store": one(default_store(), "where prompt sets are looked up, before those that are shipped"),
        "--runs": one(DEFAULT_RUNS, "where finished cells and pictures made once are kept; safe to delete"),
        "--device": one("cpu", "torch device, such as cuda"),
        "--fresh": flag("measure again what an earlier run has measured"),
        "--dry-run": flag(
            "only say what would be measured, its charged passes at most, and about how long it takes"
        ),
        "--transfer-matrix": flag(
            "instead of threat levels: pictures attacked against each prompt set, judged under each"
        ),
        "--html": {
            "metavar": "FILE",
            "type": Path,
            "help": "also write a page with tables and curves over the radius",
        },
        "--json": flag("print one JSON object"),
        "--per-picture": flag("in the JSON: which pictures, and which of them were right"),
    }


def read_question(arguments: argparse.Namespace) -> Question:
    """The question that parsed options mean. Raises InvalidInput that names the option at fault."""
    for template in arguments.template or ():
        check_template(template, field="--template")
    given = vars(arguments)
    copied = ("strength", "steps", "restarts", "draws", "queries", "search", "limit", "batch")
    values = {
        "backbones": _words(arguments.backbone or [DEFAULT_BACKBONE]),
        "prompt_sets": words_but(lambda value: "{" in value, arguments.prompt_set or ["handcrafted"]),
        "data": _sources(arguments),
        "threats": _words(arguments.threat or ["clean"]),
        "eps": _words(arguments.eps or ["1/255"]),
        "defenses": arguments.defense or [NO_DEFENSE],
        "seeds": _words(arguments.seed or ["0"]),
        "surrogates": _words(arguments.surrogate or []),
        **{name: given[name] for name in (*copied, "scoring", "pretrained", "store", "runs")},
        "device": check_device(arguments.device),
    }
    question = read_fields(Question, values, command="evaluate", named=_option)
    if question.pretrained and len(question.backbones) > 1:
        raise InvalidInput(
            "weights are for one backbone.",
            field="--pretrained",
            help="Name one backbone, or use embedded ones.",
        )
    return question


def _option(field: str) -> str:
    path = field.split("/")
    name = path[2] if path[0] == "data" and len(path) > 2 else path[0]
    return f"--{_OPTIONS.get(name, name)}"


def _sources(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    if arguments.preset is not None:
        return _preset_sources(arguments)
    folders, classes = (words_but(_exists, values or []) for values in (arguments.data, arguments.classes))
    chosen = [{"classes": name, "among": arguments.among} for name in classes] or [{"among": arguments.among}]
    common = {"split": arguments.split, "templates": arguments.template or [HANDCRAFTED_TEMPLATE]}
    return [{"folder": folder, **common, **some} for folder, some in itertools.product(folders, chosen)]


def _preset_sources(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All data sets of one preset. What a preset decides can't be given beside it."""
    presets, only = _words(arguments.preset), _words(arguments.only or [])
    if len(presets) > 1 or len(arguments.data) > 1:
        raise InvalidInput("one preset below one folder is measured at a time.", field="--preset")
    for option, given in (("--template", arguments.template), ("--classes", arguments.classes)):
        if given:
            raise InvalidInput(
                f"a preset decides what {option} says.", field=option, help="Leave one of them out."
            )
    sources = preset_sources(presets[0], Path(arguments.data[0]), only=only, downloading=arguments.download)
    return [source.model_dump() for source in sources]


def _exists(value: str) -> bool:
    return Path(value).exists()


def _words(values: Sequence[str]) -> list[str]:
    """Distinct values of an option that takes commas and may be repeated, in their order."""
    return list(dict.fromkeys(words(values)))
