"""How long a person waits for `robustclip probe` on one picture with ten labels, from what the command says
while it runs, and the passes it charged.

    python tests/benchmarks/bench_probe.py --backbone mini-robust --eps 8/255 --spared 1/255

Prints one JSON object. `first_verdict` is the first witness, or the end of the first attack without one, at
`--eps`; `quick` and `standard` are whole probes at `--spared`, where nothing should break (see `verdict`);
`bracket` closes in on the smallest radius. `seconds` count from the moment when the command says what it is
going to do, `with_start` from the start of its process: imports and weights. Nothing here is asserted:
machines differ, and that is the point of running it on yours. `limit` is what two cores are meant to keep
with `mini-robust`.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import skimage.data

PROGRAM = str(Path(sys.executable).parent / "robustclip")
LABELS = "cat,dog,rocket,car,cup of coffee,flower,guitar,church,bicycle,fish"
LIMITS = {"first_verdict": 1, "quick": 5, "standard": 30, "bracket": 90}
_VERDICT = re.compile(r"witness |.*: breaks (it|nothing)")  # a witness, or the end of an attack
_ENDS = {
    "bracket": re.compile(r"smallest radius: ")
}  # what is waited for, where it is not the whole probe; of several lines the last


class Heard(NamedTuple):
    """A line on standard error, and when it came, in seconds since the process was started."""

    at: float
    line: str


def main() -> None:
    """Measure, print."""
    options = _options()
    asked = {
        "first_verdict": ["--eps", options.eps],
        "quick": ["--eps", options.spared, "--preset", "quick"],
        "standard": ["--eps", options.spared, "--preset", "standard"],
        "bracket": ["--eps", options.spared, "--minimal"],
    }
    common = [
        "--labels",
        options.labels,
        "--backbone",
        options.backbone,
        "--prompt-set",
        options.prompt_set,
        "--defense",
        options.defense,
    ]
    common += [] if options.store is None else ["--store", str(options.store)]
    results = {
        name: measured(name, [str(options.picture), *common, *asked[name]])
        for name in options.only.split(",")
    }
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    about = {
        "backbone": options.backbone,
        "prompt_set": options.prompt_set,
        "defense": options.defense,
        "picture": options.picture.name,
    }
    print(json.dumps({**machine, **about, "results": results}, indent=2))


def measured(name: str, words: list[str]) -> dict[str, Any]:
    """One run of the command, as it tells of itself."""
    heard, report = run(words)
    started = next(each for each in heard if each.line.endswith("charged passes at most"))
    said = [each for each in heard if _VERDICT.match(each.line)]
    closing = [each for each in heard if name in _ENDS and _ENDS[name].match(each.line)]
    ended = said[0] if name == "first_verdict" else closing[-1] if closing else heard[-1]
    bracket = report["minimal_radius"] if name == "bracket" else None
    return {
        "seconds": round(ended.at - started.at, 2),
        "with_start": round(ended.at, 2),
        "limit": LIMITS[name],
        "verdict": report["verdict"]["value"],
        "charged": report["charged"] if bracket is None else bracket["forward"] + 2 * bracket["backward"],
        "charged_at_most": int(re.findall(r"(\d+) charged", started.line)[0]),
        **(
            {}
            if bracket is None
            else {
                "unbroken": bracket["unbroken_text"],
                "broken": bracket["broken_text"],
                "complete": bracket["complete"],
            }
        ),
    }


def run(words: list[str]) -> tuple[list[Heard], dict[str, Any]]:
    """What the command says while it runs, the end of its report last, and that report."""
    began = time.monotonic()
    command = [PROGRAM, "probe", *words, "--progress", "--json"]
    with tempfile.TemporaryFile("w+") as report:  # a pipe would fill up and hold the command
        with subprocess.Popen(command, stdout=report, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            heard = [Heard(time.monotonic() - began, line.rstrip()) for line in process.stderr]
        heard.append(Heard(time.monotonic() - began, "report"))
        report.seek(0)
        printed = report.read()
    if not printed:
        raise SystemExit("\n".join(each.line for each in heard))
    return heard, json.loads(printed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--backbone", default="mini")
    parser.add_argument("--prompt-set", default="handcrafted")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--defense", default="none")
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path(skimage.data.data_dir) / "chelsea.png",
        help="default: a photograph of a cat",
    )
    parser.add_argument("--labels", default=LABELS, help="default: %(default)s")
    parser.add_argument(
        "--eps", default="8/255", help="a radius at which the picture breaks (default: %(default)s)"
    )
    parser.add_argument(
        "--spared", default="0.05/255", help="a radius at which it stands (default: %(default)s)"
    )
    parser.add_argument("--only", default=",".join(LIMITS), help="some of them (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
