"""How much a request may say: lengths are looked at before items."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.bounds import MAX_CHARACTERS, MAX_FIELDS, MAX_ITEMS, MAX_NODES, refuse_large
from service.config import LimitSettings
from service.problems import Problem
from service.schemas import ClassifyRequest, ProbeRequest, parse

LIMITS = LimitSettings(images=3, labels=5, label_characters=10)


class Untouchable(list[Any]):
    """A list whose items may not be looked at."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("an item was looked at")


@pytest.mark.parametrize(
    "field", ["labels", "images", "defense", "defenses", "attacks", "modes", "unheard-of"]
)
def test_the_items_of_too_long_a_list_are_not_looked_at(field: str) -> None:
    with pytest.raises(Problem, match="expected at most") as refusal:
        refuse_large({field: Untouchable([0] * 100)}, LIMITS)
    assert refusal.value.errors[0].pointer == f"#/{field}"


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({f"field{index}": 0 for index in range(MAX_FIELDS + 1)}, "#"),
        ({"attacks": [{"kind": "pgd", "x": [0] * (MAX_NODES + 1)}]}, "#/attacks"),
        ({"attacks": [{str(index): 0 for index in range(MAX_NODES + 1)}]}, "#/attacks"),
        ({"defense": nested(2 * MAX_NODES)}, "#/defense"),
        ({"defense": "jpeg," * MAX_CHARACTERS}, "#/defense"),
        ({"certify": {"x" * (MAX_CHARACTERS + 1): 1}}, "#/certify"),
        ({"true_label": "x" * (MAX_CHARACTERS + 1)}, "#/true_label"),
        ({"labels": ["a", "b" * 1000]}, "#/labels/1"),
        ({"labels": ["a", [0] * (MAX_NODES + 1)]}, "#/labels/1"),
        ({"defenses": {str(index): 0 for index in range(MAX_ITEMS + 1)}}, "#/defenses"),
    ],
)
def test_what_is_too_large_is_named(data: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Problem) as refusal:
        refuse_large(data, LIMITS)
    assert [item.pointer for item in refusal.value.errors] == [pointer]
    assert len(json.dumps(refusal.value.detail)) < 300


def test_a_request_of_every_allowed_length_passes() -> None:
    refuse_large(
        {
            "labels": ["x" * 10] * 5,
            "images": [b"x" * 10**6] * 3,
            "defense": ["jpeg:75"] * 8,
            "attacks": [{"kind": "pgd", "ball": {"norm": "linf", "radius": 0.1}}] * 16,
            "defenses": [["jpeg:75", {"kind": "bit_depth", "bits": 4}]] * 32,
        },
        LIMITS,
    )


@pytest.mark.parametrize("model", [ClassifyRequest, ProbeRequest])
def test_requests_are_bounded_where_they_are_read(model: type[ClassifyRequest] | type[ProbeRequest]) -> None:
    for field in ("defense", "defenses", "labels", "nothing"):
        with pytest.raises(Problem, match="expected at most"):
            parse(model, {"image": b"x", "labels": ["a", "b"], field: Untouchable([0] * 10_000)}, LIMITS)
