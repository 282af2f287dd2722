"""The `robustclip` command: finds its commands among entry points and runs one of them.

A command is a function `main(argv) -> int`, listed under `robustclip.commands` in pyproject.toml; the first
line of its docstring is its summary. Only the command that runs is imported, so `--help` is fast.
"""

import ast
import difflib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path

from robustclip.errors import RobustClipError

GROUP = "robustclip.commands"
DEFECT = 1
USER_ERROR = 2
INTERRUPTED = 130
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the installed commands and return its exit status."""
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    return run(commands, sys.argv[1:] if argv is None else argv)


def run(commands: Mapping[str, EntryPoint], argv: Sequence[str]) -> int:
    """Exit status of the command that argv names: its own, or 2 (user's error), 1 (defect), 130
    (interrupted).

    Shows a traceback only if `--debug` stands first.
    """
    debug = list(argv[:1]) == ["--debug"]
    arguments = list(argv[1:] if debug else argv)
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(overview(commands), flush=True)
            return 0
        if arguments[0] == "--version":
            print(f"robustclip {version('robustclip')}", flush=True)
            return 0
        if arguments[0] not in commands:
            return _complain(_unknown(arguments[0], commands), USER_ERROR)
        return commands[arguments[0]].load()(arguments[1:])
    except KeyboardInterrupt:
        return _complain("interrupted.", INTERRUPTED)
    except BrokenPipeError:  # the reader has left (`| head`): at exit Python must not flush into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, RobustClipError):
            return _complain(str(error), USER_ERROR)
        detail = " ".join(str(error).split())
        hint = f"`robustclip --debug {arguments[0]} ...` shows where"
        return _complain(f"internal error, {type(error).__name__}: {detail} ({hint})", DEFECT)


def overview(commands: Mapping[str, EntryPoint]) -> str:
    """The text of `robustclip --help`: each command with its one-line summary."""
    width = max((len(name) for name in commands), default=0)
    return "\n".join(
        [
            "usage: robustclip [--debug] COMMAND [OPTIONS]",
            "",
            "Adversarially robust CLIP: learn prompts, serve them behind defenses, probe every verdict.",
            "",
            "commands (`robustclip COMMAND --help` says more):",
            *(f"  {name:<{width}}  {summary(commands[name])}".rstrip() for name in sorted(commands)),
            "",
            "options:",
            "  --debug    show the traceback of an error",
            "  --version  show the version",
        ]
    )


def summary(command: EntryPoint) -> str:
    """First docstring line of a command's function, empty if there is none.

    Read from its source: importing it, or only the packages around it, could load torch.
    """
    top, *inner = command.module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return ""
    source = Path(spec.origin)
    source = source.parent.joinpath(*inner).with_suffix(".py") if inner else source
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == command.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0].rstrip(".")
    return ""


def _unknown(name: str, commands: Mapping[str, EntryPoint]) -> str:
    near = difflib.get_close_matches(name, commands, n=1)
    guess = f" Did you mean `robustclip {near[0]}`?" if near else ""
    return f"there is no command {name!r}.{guess} `robustclip --help` lists the commands."


def _complain(message: str, status: int) -> int:
    print(f"robustclip: {message}", file=sys.stderr)
    return status
