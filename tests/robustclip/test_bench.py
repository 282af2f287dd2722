"""`robustclip bench`: what is listed among entry points can be run, and nothing else."""

from importlib.metadata import EntryPoint

import pytest

from robustclip.bench import GROUP, run
from robustclip.errors import InvalidInput

LISTED = {"training": EntryPoint("training", "training.benchmark:main", GROUP)}


def test_help_lists_the_benchmarks_with_their_summaries(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"]):
        assert run(LISTED, argv) == 0
        assert "  training  Time training's shortcuts against what they replace" in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused_with_the_known() -> None:
    with pytest.raises(InvalidInput, match="Known: training") as refused:
        run(LISTED, ["luck"])
    assert refused.value.field == "bench"


def test_options_reach_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(LISTED, ["training", "--help"])
    assert left.value.code == 0
    assert "--steps" in capsys.readouterr().out
