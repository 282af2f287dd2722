"""`robustclip bench NAME`: benchmarks, found among entry points as commands are. Each prints one JSON object and asserts nothing: machines differ.

A benchmark is a function `main(argv) -> int`, listed under `robustclip.benchmarks` in pyproject.toml; the first line of its docstring is its summary.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points

from robustclip.cli import summary
from robustclip.errors import InvalidInput

GROUP = "robustclip.benchmarks"


def main(argv: Sequence[str]) -> int:
    """Time one part of the system against what it replaces."""
    return run({entry.name: entry for entry in entry_points(group=GROUP)}, argv)


def run(benchmarks: Mapping[str, EntryPoint], argv: Sequence[str]) -> int:
    """Exit status of the benchmark that argv names; InvalidInput for an unknown one."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max((len(name) for name in benchmarks), default=0)
        lines = [f"  {name:<{width}}  {summary(benchmarks[name])}".rstrip() for name in sorted(benchmarks)]
        print("\n".join(["usage: robustclip bench NAME [OPTIONS]", "", *lines, "", "`robustclip bench NAME --help` says more."]))
        return 0
    if argv[0] not in benchmarks:
        raise InvalidInput(f"there is no benchmark {argv[0]!r}.", field="bench", help=f"Known: {', '.join(sorted(benchmarks))}.")
    return benchmarks[argv[0]].load()(list(argv[1:]))
