"""What `robustclip probe` leaves behind: a picture, a page for people, a log for build servers, an exit
status. Files are whole or absent.
"""

import argparse
import base64
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustclip.errors import InvalidInput
from robustclip.files import write_atomically

if TYPE_CHECKING:  # these import torch, and --help must not wait for it
    from robustclip.reports.report import ProbeReport
    from robustclip.threat import Norm
    from robustclip.types import Pixels

STANDS, BROKEN, INCONCLUSIVE, VIOLATED = 0, 1, 2, 3
EXIT_STATUS = """exit status: 0 not broken within the budget, 1 broken, 2 inconclusive or bad input;
with --fail-below RADIUS: 3 a witness within that radius, 0 none was found, 2 bad input
"""


@dataclass(frozen=True)
class Outputs:
    """Where to write what; `policy` is the radius within which a witness fails the command, in `norm` and
    pixel units.
    """

    out: Path | None
    html: Path | None
    sarif: Path | None
    policy: float | None
    norm: "Norm"


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", type=Path, metavar="PNG", help="write the adversarial picture, as the classifier sees it"
    )
    group.add_argument(
        "--html", type=Path, metavar="FILE", help="write the report as a page that needs nothing else"
    )
    group.add_argument(
        "--sarif",
        type=Path,
        metavar="FILE",
        help="write the findings as SARIF 2.1.0, for code hosts and build servers",
    )
    group.add_argument(
        "--fail-below",
        metavar="RADIUS",
        help="try this radius too; exit status 3 if a witness keeps to it, 0 if none does. Unless one of "
        "--html, --sarif, --json and --out asks "
        "for a report, nothing larger is tried, and the first such witness ends it",
    )


def outputs_of(arguments: argparse.Namespace) -> Outputs:
    """What the flags of `add_output_flags` ask for, checked before any work. Raises InvalidInput that names
    the flag at fault.
    """
    from robustclip.threat import MAX_L2_RADIUS, parse_radius

    paths: dict[str, Path] = {
        flag: path for flag in ("out", "html", "sarif") if (path := getattr(arguments, flag)) is not None
    }
    seen: dict[Path, str] = {}
    for flag, path in paths.items():
        if path.is_dir():
            raise InvalidInput(f"{path} is a folder.", field=f"--{flag}", help="Name a file.")
        if (other := seen.setdefault(path.absolute(), flag)) != flag:
            raise InvalidInput(
                f"{path} is what --{other} writes.", field=f"--{flag}", help="Name another file."
            )
    policy = None if arguments.fail_below is None else parse_radius(arguments.fail_below, "--fail-below")
    largest = MAX_L2_RADIUS if arguments.norm == "l2" else 1.0
    if policy is not None and not 0 < policy <= largest:
        raise InvalidInput(
            f"expected a radius above 0 and at most {largest:g}, found {arguments.fail_below}.",
            field="--fail-below",
        )
    return Outputs(arguments.out, arguments.html, arguments.sarif, policy, arguments.norm)


def exit_status(report: "ProbeReport", outputs: Outputs) -> int:
    """With a policy the question is whether a witness keeps to it, else the verdict."""
    from robustclip.reports.witnesses import is_within, smallest_change

    if outputs.policy is not None:
        return VIOLATED if is_within(smallest_change(report, outputs.norm), outputs.policy) else STANDS
    return {"broken": BROKEN, "inconclusive": INCONCLUSIVE}.get(report.verdict.value, STANDS)


def write_outputs(
    outputs: Outputs, report: "ProbeReport", clean: "Pixels", *, picture: Path, command: str
) -> None:
    """Write what was asked for. `clean` [3, S, S] are the attacked pixels; `picture` is the file they are
    from, - being standard input.
    """
    from robustclip.reports.witnesses import best_record

    source = None if str(picture) == "-" else picture
    if outputs.out is not None:
        record = best_record(report)
        if record is not None and record.adversarial_png is not None:
            _write(outputs.out, base64.b64decode(record.adversarial_png), "--out")
        else:
            sys.stderr.write(
                f"robustclip: {outputs.out} was not written: no PNG holds what the attack found.\n"
            )
    if outputs.html is not None:
        from robustclip.reports.pages import probe_page

        page = probe_page(
            report,
            clean=clean.cpu(),
            picture="standard input" if source is None else source.name,
            command=command,
        )
        _write(outputs.html, page.encode(), "--html")
    if outputs.sarif is not None:
        from robustclip.reports.sarif import sarif_log

        log = sarif_log(
            report,
            picture=source,
            norm=outputs.norm,
            policy=outputs.policy,
            command=command,
            exit_code=exit_status(report, outputs),
        )
        _write(outputs.sarif, json.dumps(log, indent=2, ensure_ascii=False).encode(), "--sarif")


def command_line(name: str, argv: Sequence[str] | None) -> str:
    """A command of `robustclip` as it could be typed again; None: the one that runs."""
    return shlex.join(["robustclip", name, *(sys.argv[1:] if argv is None else argv)])


def _write(path: Path, content: bytes, flag: str) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}.", field=flag) from error
