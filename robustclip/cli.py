"""The `robustclip` command: finds its commands among entry points and runs one. Imports no command before it is asked for, so `--help` is instant.

A command is a function `main(argv) -> int`, listed under `robustclip.commands` in pyproject.toml; the first line of its docstring is its summary.
"""

import ast
import difflib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

from robustclip.errors import RobustClipError

GROUP = "robustclip.commands"
USAGE_ERROR = 2
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2 for what the user can cure, 1 for a defect, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = arguments[:1] == ["--debug"]
    if debug:
        arguments.pop(0)
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview(found))
        return 0
    if arguments[0] == "--version":
        print(f"robustclip {version('robustclip')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f" Did you mean `robustclip {near[0]}`?" if near else ""
        return _complain(f"there is no command {name!r}.{hint} `robustclip --help` lists the commands.", USAGE_ERROR)
    try:
        return found[name].load()(rest)
    except KeyboardInterrupt:
        return _complain("interrupted.", INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe left (`| head`): not an error, and stdout must not be flushed again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except RobustClipError as error:
        if debug:
            traceback.print_exc()
        return _complain(str(error), USAGE_ERROR)
    except Exception as error:
        if debug:
            raise
        detail = " ".join(str(error).split())
        return _complain(f"internal error, {type(error).__name__}: {detail} Run `robustclip --debug {name} ...` to see where.", 1)


def overview(commands: dict[str, EntryPoint]) -> str:
    """The text of `robustclip --help`: each command with its one-line summary."""
    width = max((len(name) for name in commands), default=0)
    lines = [f"  {name:<{width}}  {summary(commands[name])}" for name in sorted(commands)]
    return "\n".join(
        [
            "usage: robustclip [--debug] COMMAND [OPTIONS]",
            "",
            "Adversarially robust CLIP: learn prompts, serve them behind defenses, probe every verdict.",
            "",
            "commands (`robustclip COMMAND --help` says more):",
            *lines,
            "",
            "  --debug    show the traceback of an error",
            "  --version  show the version",
        ]
    )


def summary(command: EntryPoint) -> str:
    """First docstring line of a command's function, read from its source: importing it could load torch. Empty when there is none."""
    try:
        spec = importlib.util.find_spec(command.module)
    except ModuleNotFoundError:
        return ""
    if spec is None or spec.origin is None:
        return ""
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == command.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")
    return ""


def _complain(message: str, status: int) -> int:
    print(f"robustclip: {message}", file=sys.stderr)
    return status
