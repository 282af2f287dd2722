"""`robustclip bench`: every script of tests/benchmarks can be run by its name, and nothing else."""

from pathlib import Path

import pytest

from robustclip.bench import TESTS, run
from robustclip.errors import FeatureNotInstalled, InvalidInput


def test_help_lists_the_benchmarks_with_their_summaries(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"]):
        assert run(TESTS, argv) == 0
        printed = capsys.readouterr().out
        assert "  training   What the engineering of training saves\n" in printed
        assert "  attacks    The ensemble beside pyautoattack's standard version" in printed


def test_an_unknown_benchmark_is_refused_with_the_known() -> None:
    with pytest.raises(InvalidInput, match=r"Known: .*training") as refused:
        run(TESTS, ["luck"])
    assert refused.value.field == "bench"


def test_an_installed_package_says_where_benchmarks_are(tmp_path: Path) -> None:
    with pytest.raises(FeatureNotInstalled, match="in a checkout"):
        run(tmp_path, ["training"])


def test_options_and_the_exit_status_pass_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "benchmarks").mkdir()
    script = '"""Count options: how many."""\nimport sys, toys\nprint(sys.argv[1:])\nsys.exit(3)\n'
    (tmp_path / "benchmarks" / "bench_options.py").write_text(script)
    (tmp_path / "toys.py").write_text("")
    assert run(tmp_path, ["options", "--steps", "2"]) == 3
    assert capfd.readouterr().out == "['--steps', '2']\n"
