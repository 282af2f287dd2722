"""What users write behind options, and what they are told about them, the same for every command."""

import argparse

import pytest
from pydantic import BaseModel, Field

from robustclip.errors import InvalidInput
from robustclip.threat import LinfRadius
from training.commands import add_field, check_device, read_fields, shown, words


class Asked(BaseModel):
    """A model that a command could be made from."""

    eps: LinfRadius = Field(2.5 / 255, description="radius, at most 100 % of the range")
    check_pictures: int = Field(8, ge=1, description="pictures")
    seeds: tuple[int, ...] = (0, 1)


def test_commas_and_repetitions_mean_the_same() -> None:
    assert words(["0,1", "2"]) == words(["0", " 1 ,2,"]) == ["0", "1", "2"]
    assert words([",", ""]) == []


def test_defaults_are_shown_as_one_would_write_them() -> None:
    assert [shown(default) for default in (None, "", True, (1, 2), 1 / 255, 2.5 / 255, 0.4, 5e-4, 16)] == [
        *("none", "none", "true", "1,2", "1/255", "2.5/255", "0.4", "0.0005", "16"),
    ]  # fmt: skip


def test_an_option_made_from_a_field_explains_it_and_gives_it_back() -> None:
    parser = argparse.ArgumentParser()
    for name in ("eps", "check_pictures"):
        add_field(parser, name, Asked.model_fields[name])
    assert "radius, at most 100 % of the range (default: 2.5/255)" in " ".join(parser.format_help().split())
    given = vars(parser.parse_args(["--check-pictures", "3", "--eps", "1/255"]))
    assert read_fields(Asked, given, command="ask") == Asked(eps=1 / 255, check_pictures=3)


@pytest.mark.parametrize(
    ("values", "option"), [({"check_pictures": "none"}, "--check-pictures"), ({"seeds": ["a"]}, "--seeds/0")]
)
def test_what_no_field_takes_is_refused_under_the_name_of_its_option(
    values: dict[str, object], option: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read_fields(Asked, values, command="ask")
    assert refusal.value.field == option
    assert refusal.value.help == "robustclip ask --help lists all options."


@pytest.mark.parametrize("device", ["abacus", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(InvalidInput, match="can't be used"):
        check_device(device)
    assert check_device("cpu") == "cpu"
