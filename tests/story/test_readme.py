"""Documents are executed: their `sh` blocks run against a real server, and what they show is what comes out.

A fence says how: `sh` and `python` run; `sh long` would train for minutes, so only its options are checked; a
`json` or `text` fence right after is the output.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md"]
STARTING_SECONDS = 120
PROGRAM = str(Path(sys.executable).parent / "robustclip")


class Block(NamedTuple):
    info: str
    text: str
    output: str | None


def blocks(document: Path) -> list[Block]:
    """The fenced blocks in order, each with the output fence that follows directly, if any."""
    found = re.findall(
        r"^```(\w[^\n]*)\n(.*?)^```\n(?:```(?:json|text)\n(.*?)^```$)?",
        document.read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    return [Block(info.strip(), text, output or None) for info, text, output in found]


def of_kind(kind: str) -> list[object]:
    return [
        pytest.param(block, id=f"{document.name}-{index}")
        for document in DOCUMENTS
        for index, block in enumerate(blocks(document))
        if block.info == kind
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of `robustclip serve` as a newcomer starts it, with a store of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("served")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ROBUSTCLIP_")}
    command = [PROGRAM, "serve", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail(f"the server did not get ready:\n{(folder / 'log').read_text()}")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def run(text: str, port: int, folder: Path) -> str:
    """A block as a shell runs it in the checkout, with the documented port and the folder for throw-away
    files replaced by the test's own.
    """
    script = (
        text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        .replace("var/", f"{folder}/")
        .replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    )
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def decisions(output: str) -> list[str]:
    """What a reader takes from an output: the best label of an answer, the verdict of a probe. Documents
    shorten the rest, machines differ in it.
    """
    found: list[str] = []
    for line in output.splitlines():
        match = re.match(r'\{.*?"label":"([^"]+)"', line) or re.match(
            r"(broken|inconclusive|not-broken-within-budget):", line
        )
        found += [match[1]] if match else []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("block", of_kind("sh"))
def test_a_block_runs_and_shows_what_the_document_says(block: Block, server: int, tmp_path: Path) -> None:
    output = run(block.text, server, tmp_path)
    if block.output is not None:
        assert decisions(output) == decisions(block.output) != []


@pytest.mark.slow
@pytest.mark.parametrize("block", of_kind("python"))
def test_a_python_block_runs_and_prints_what_the_document_says(block: Block, tmp_path: Path) -> None:
    """Line by line up to the first number, in which machines may differ."""
    finished = subprocess.run(
        [sys.executable, "-c", block.text.replace("var/", f"{tmp_path}/")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert block.output is not None
    printed, shown = (re.findall(r"^\D+", text, re.MULTILINE) for text in (finished.stdout, block.output))
    assert printed == shown != []


@pytest.mark.parametrize("block", of_kind("sh long"))
def test_a_long_block_names_options_that_exist(block: Block) -> None:
    for line in filter(None, block.text.splitlines()):
        program, command, *words = shlex.split(line)
        assert program == ".venv/bin/robustclip"
        shown = subprocess.run(
            [PROGRAM, command, "--help"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for word in words:
            if word.startswith("--"):
                assert word in shown, f"robustclip {command} has no {word}"


def test_documents_link_to_files_that_exist() -> None:
    for document in [
        *DOCUMENTS,
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("*/README.md"),
        ROOT / "prompts_store" / "FORMAT.md",
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
