"""Digests: equal for what is equal, and for nothing else."""

import math

import pytest
import torch

from robustclip.digests import canonical_json, json_digest, levels_digest, tensor_digest


def test_the_order_of_keys_does_not_matter_and_that_of_lists_does() -> None:
    assert canonical_json({"b": [2, 1], "a": "é"}) == '{"a":"\\u00e9","b":[2,1]}'
    assert json_digest({"b": 1, "a": 2}) == json_digest({"a": 2, "b": 1})
    assert json_digest([1, 2]) != json_digest([2, 1])


def test_what_json_can_not_say_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"radius": math.nan})


def test_a_tensor_is_known_by_its_values_and_its_shape() -> None:
    values = torch.arange(6.0)
    assert tensor_digest(values) == tensor_digest(values.double())
    assert tensor_digest(values.reshape(3, 2).T) == tensor_digest(values.reshape(3, 2).T.contiguous())
    assert (
        len({tensor_digest(values), tensor_digest(values.reshape(2, 3)), tensor_digest(values + 1e-3)}) == 3
    )


def test_pixels_are_known_by_their_levels() -> None:
    pixels = torch.full((3, 4, 4), 100 / 255)
    assert levels_digest(pixels) == levels_digest(pixels + 0.4 / 255) == levels_digest(pixels[None])
    assert levels_digest(pixels) != levels_digest(pixels + 1 / 255)
