"""A change of layout leaves what users and their files depend on as it is: fingerprints, versions, cell keys,
options, HTTP fields, the results page.

What is new may stand beside it: another attack, another option, another field.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden.record import snapshot

pytestmark = pytest.mark.slow

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("snapshot.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def present() -> dict[str, Any]:
    return json.loads(json.dumps(snapshot()))


@pytest.mark.parametrize("part", sorted(RECORDED))
def test_nothing_of_it_has_changed(present: dict[str, Any], part: str) -> None:
    assert list(_differences(RECORDED[part], present[part], part)) == []


def test_a_change_is_noticed_and_an_addition_is_none() -> None:
    recorded = {"options": {"--eps": "1/255", "--seed": "0"}, "kinds": ["pgd", "apgd"]}
    more = {
        "options": {"--eps": "1/255", "--seed": "0", "--new": "1"},
        "kinds": ["apgd", "new", "pgd"],
        "other": 1,
    }
    assert list(_differences(recorded, more, "")) == []
    less = {"options": {"--eps": "2/255"}, "kinds": ["pgd"]}
    assert list(_differences(recorded, less, "")) == [
        "/options/--eps: '1/255' is '2/255' now",
        "/options/--seed is gone",
        "/kinds/1: 'apgd' is gone",
    ]


def _differences(recorded: Any, present: Any, place: str) -> Iterator[str]:
    """Where something recorded is gone or another."""
    if isinstance(recorded, dict) and isinstance(present, dict):
        for name, value in recorded.items():
            if name in present:
                yield from _differences(value, present[name], f"{place}/{name}")
            else:
                yield f"{place}/{name} is gone"
    elif isinstance(recorded, list) and isinstance(present, list):
        yield from (
            f"{place}/{index}: {each!r} is gone" for index, each in enumerate(recorded) if each not in present
        )
    elif recorded != present:
        yield f"{place}: {recorded!r} is {present!r} now"
