import argparse
from pathlib import Path
from typing import Any

import pytest

from robustclip.errors import InvalidInput
from training.learning.objectives import OBJECTIVES, AdvPT
from training.learning.tuning.config import TrainSettings, add_options, read_settings

REQUIRED = ["--data", "pictures", "--name", "a-set", "--objective.kind", "advpt"]


def parse(*options: str) -> TrainSettings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_settings(vars(parser.parse_args([*REQUIRED, *options])))


def test_options_that_are_not_given_have_the_models_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUSTCLIP_STORE__PATH", raising=False)
    assert parse() == TrainSettings(objective=AdvPT(), data=Path("pictures"), name="a-set")


def test_every_option_reaches_its_field() -> None:
    settings = parse(
        *(
            "--objective.eps",
            "1/255",
            "--objective.vectors",
            "8",
            "--objective.bank_clean",
            "true",
            "--objective.words",
            "a photo",
            "--shots",
            "16",
        ),
        *(
            "--validate-at",
            "clean,T2",
            "--validate-eps",
            "2/255",
            "--activate",
            "--fresh",
            "--seed",
            "7",
            "--store",
            "here",
            "--allow-fewer-shots",
        ),
    )
    assert settings.objective == AdvPT(eps=1 / 255, vectors=8, bank_clean=True, words="a photo")
    assert (settings.shots, settings.seed, settings.store, settings.validate_at) == (
        16,
        7,
        Path("here"),
        ("clean", "T2"),
    )
    assert (settings.activate, settings.fresh, settings.allow_fewer_shots) == (True, True, True)
    assert settings.validate_eps == 2 / 255
    assert not parse("--fresh", "--resume").fresh


def test_the_store_is_the_services_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTCLIP_STORE__PATH", "elsewhere")
    assert parse().store == Path("elsewhere")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--objective.eps", "nan"], "--objective.eps"),
        (["--objective.vectors", "many"], "--objective.vectors"),
        (["--shots", "-1"], "--shots"),
        (["--seed", "1.5"], "--seed"),
        (["--validate-at", "T7"], "--validate-at"),
        (["--name", "../sets/x"], "--name"),
        (["--name", "Upper"], "--name"),
    ],
)
def test_a_wrong_value_names_its_option(options: list[str], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(*options)
    assert refused.value.field == field


def test_an_option_of_another_objective_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        parse("--objective.kind", "coop", "--objective.eps", "1/255")
    assert refused.value.field == "--objective.eps"


def test_help_lists_every_parameter_with_its_default() -> None:
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=200))
    add_options(parser)
    text = " ".join(parser.format_help().split())
    names = [f"--{name.replace('_', '-')}" for name in TrainSettings.model_fields if name != "objective"]
    names += [f"--objective.{name}" for model in OBJECTIVES.values() for name in model.model_fields]
    assert all(name in text for name in names)
    for shown in (
        "(default: mini-robust)",
        "(default: 8/255)",
        "advpt, advpt_plus: ",
        "advpt: radius of the bank's attack",
        "apt, fap, capt, apd: radius of the training attack",
        "(default: 1/255)",
        "(default: 0.002; fap 0.0035; capt 0.0035; apd 0.0035)",
        "(default: 32; apt 16)",
        "(default: false)",
    ):
        assert shown in text


def test_settings_are_frozen_and_closed() -> None:
    values: dict[str, Any] = {"objective": {"kind": "coop"}, "data": "x", "name": "y", "surprise": 1}
    with pytest.raises(ValueError, match="surprise"):
        TrainSettings.model_validate(values)
    with pytest.raises(ValueError, match="frozen"):
        parse().seed = 3


def test_help_tells_whose_default_differs() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    text = " ".join(parser.format_help().split())
    assert "(default: 32; fap 4)" in text
    assert "(default: 100; apt 50; fap 10; capt 50)" in text
