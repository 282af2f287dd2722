"""The dispatcher, with commands of its own: real entry points to a module written for the test."""

import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from robustclip.cli import main, overview, run

SOURCE = '''
import sys

print("imported", file=sys.stderr)

def echo(argv):
    """Repeat the options.

    And more, which a list of commands has no room for.
    """
    print(*argv)
    return 7

def refuse(argv):
    from robustclip.errors import InvalidInput
    raise InvalidInput("a radius is at least 0, found -1.", field="--eps", help="Write it like 4/255.")

def stop(argv):
    raise KeyboardInterrupt

def fail(argv):
    raise ZeroDivisionError("on\\ntwo lines")
'''


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, EntryPoint]:
    (tmp_path / "commands_of_the_cli_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "commands_of_the_cli_test", raising=False)
    return {
        name: EntryPoint(name, f"commands_of_the_cli_test:{name}", "robustclip.commands")
        for name in ("echo", "refuse", "stop", "fail")
    }


def test_a_command_gets_its_options_and_gives_its_status(
    commands: Mapping[str, EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(commands, ["echo", "--eps", "4/255"]) == 7
    assert capsys.readouterr().out == "--eps 4/255\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_each_command_with_its_first_docstring_line_and_imports_none(
    commands: Mapping[str, EntryPoint], argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(commands, argv) == 0
    captured = capsys.readouterr()
    assert "  echo    Repeat the options\n" in captured.out
    assert "And more" not in captured.out
    assert captured.err == ""


def test_an_unknown_command_is_refused_with_the_nearest_name(
    commands: Mapping[str, EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(commands, ["ehco"]) == 2
    assert "no command 'ehco'. Did you mean `robustclip echo`?" in capsys.readouterr().err


def test_what_the_user_can_cure_is_one_line_and_status_2(
    commands: Mapping[str, EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(commands, ["refuse"]) == 2
    captured = capsys.readouterr()
    assert (
        captured.err.splitlines()[-1]
        == "robustclip: --eps: a radius is at least 0, found -1. Write it like 4/255."
    )
    assert "Traceback" not in captured.err


def test_a_defect_is_one_line_and_status_1(
    commands: Mapping[str, EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(commands, ["fail"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith(
        "robustclip: internal error, ZeroDivisionError: on two lines"
    )
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("command", "status"), [("refuse", 2), ("fail", 1)])
def test_debug_shows_the_traceback(
    commands: Mapping[str, EntryPoint], command: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(commands, ["--debug", command]) == status
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_gives_status_130(
    commands: Mapping[str, EntryPoint], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(commands, ["stop"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_that_leaves_the_pipe_is_no_error(tmp_path: Path) -> None:
    flood = tmp_path / "flood.py"
    flood.write_text("def main(argv):\n    for line in range(100_000):\n        print(line)\n    return 0\n")
    program = (
        "import sys; from importlib.metadata import EntryPoint; from robustclip.cli import run; "
        "sys.exit(run({'flood': EntryPoint('flood', 'flood:main', 'robustclip.commands')}, ['flood']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=20) == 141


def test_the_installed_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from robustclip.cli import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'fastapi', 'pydantic', 'rich')))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_the_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("robustclip 0.")


def test_an_empty_table_of_commands_still_has_a_help() -> None:
    assert "usage: robustclip" in overview({})
