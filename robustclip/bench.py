"""`robustclip bench NAME` runs `tests/benchmarks/bench_NAME.py` of a checkout.

Each prints one JSON object and asserts nothing, since machines differ.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from robustclip.errors import FeatureNotInstalled, InvalidInput

TESTS = Path(__file__).parents[1] / "tests"


def main(argv: Sequence[str]) -> int:
    """Time one part of the system against what it replaces."""
    return run(TESTS, argv)


def run(tests: Path, argv: Sequence[str]) -> int:
    """Exit status of the benchmark that argv names.

    Raises FeatureNotInstalled if there are none, InvalidInput for an unknown one.
    """
    scripts = {
        path.stem.removeprefix("bench_"): path for path in sorted((tests / "benchmarks").glob("bench_*.py"))
    }
    if not scripts:
        raise FeatureNotInstalled(
            "benchmarks are not installed with the package.",
            field="bench",
            help="Run it in a checkout of the repository.",
        )
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, scripts))
        print("usage: robustclip bench NAME [OPTIONS]\n")
        for name, path in scripts.items():
            print(f"  {name:<{width}}  {_summary(path)}")
        print("\n`robustclip bench NAME --help` says more.")
        return 0
    if argv[0] not in scripts:
        raise InvalidInput(
            f"there is no benchmark {argv[0]!r}.", field="bench", help=f"Known: {', '.join(scripts)}."
        )
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, scripts[argv[0]], *argv[1:]], env={**os.environ, "PYTHONPATH": path}, check=False
    ).returncode


def _summary(script: Path) -> str:
    """The first words of a script's docstring, up to a colon or the end of the sentence."""
    words = " ".join((ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").split())
    return words.split(": ")[0].split(". ")[0].split(", each")[0]
