"""The section of the results page says what the record of `robustclip select` says."""

from typing import Any

import measured

SETTINGS = {"kind": "capt", "learning_rate": 0.0035, "class_specific": False, "words": ""}


def numbers(data: str, clean: float, attacked: float, *, seed: int = 0) -> list[dict[str, Any]]:
    about = {"data": data, "seed": seed, "n": 64}
    return [
        {**about, "threat": "clean", "eps": "0", "accuracy": clean},
        {**about, "threat": "T2", "eps": "2/255", "accuracy": attacked},
    ]


def candidate(
    *found: list[dict[str, Any]], ahead: Any = None, why: str | None = None, **changes: Any
) -> dict[str, Any]:
    return {
        "settings": SETTINGS | changes,
        "numbers": [number for each in found for number in each],
        "ahead": ahead,
        "why": why,
    }


def page(*candidates: dict[str, Any], chosen: int = 0, **changes: Any) -> str:
    judged = [{"data": "toys", "n": 64}, {"data": "pets", "n": 32}]
    asked = {
        "shots": 16,
        "seeds": [0],
        "max_passes": 250_000,
        "steps": 20,
        "judged_on": judged,
        "command": "robustclip select --objective capt",
    }
    words = {"title": "Rates", "says": "The higher one."}
    found = {"candidates": list(candidates), "chosen": candidates[chosen]["settings"]}
    return measured.page("select-capt", {**words, **asked, **found, **changes})


def test_each_candidate_is_a_line_and_others_name_what_they_have_differently() -> None:
    first = candidate(numbers("toys", 0.8, 0.5), numbers("pets", 0.6, 0.25))
    ahead = {"value": 0.031, "low": 0.004, "high": 0.06}
    told = page(
        first,
        candidate(
            numbers("toys", 0.7, 0.5),
            numbers("pets", 0.7, 0.375),
            ahead=ahead,
            learning_rate=0.1,
            class_specific=True,
        ),
        chosen=1,
    )
    assert (
        "|  | candidate | toys: clean, T2 | pets: clean, T2 | mean of clean | mean of T2 | ahead of the "
        "first |" in told
    )
    assert (
        "|  | kind capt, learning_rate 0.0035, class_specific false, words none | 80.0, 50.0 | 60.0, 25.0 | "
        "70.0 | 37.5 |  |" in told
    )
    assert (
        "| chosen | learning_rate 0.1, class_specific true | 70.0, 50.0 | 70.0, 37.5 | 70.0 | 43.8 | **+3.1 "
        "(+0.4 to +6.0)** |" in told
    )
    assert "64 of toys, 32 of pets" in told
    assert (
        "T2 at 2/255 with 20 steps; 16 shots, seed 0, at most 250,000 charged image passes each "
        "(`results/select-capt.json`)" in told
    )
    assert "The higher one." in told
    assert "    robustclip select --objective capt" in told


def test_a_lead_whose_interval_holds_zero_is_not_bold_and_seeds_are_meant() -> None:
    first = candidate(
        numbers("toys", 0.8, 0.5),
        numbers("toys", 0.6, 0.3, seed=1),
        numbers("pets", 0.6, 0.2),
        numbers("pets", 0.6, 0.4, seed=1),
    )
    told = page(
        first,
        candidate(
            numbers("toys", 0.7, 0.5),
            numbers("pets", 0.7, 0.5),
            ahead={"value": 0.0, "low": -0.1, "high": 0.1},
            words="a",
        ),
    )
    assert "| 70.0, 40.0 | 60.0, 30.0 | 65.0 | 35.0 |  |" in told
    assert "| words a | 70.0, 50.0 | 70.0, 50.0 | 70.0 | 50.0 | +0.0 (-10.0 to +10.0) |" in told


def test_what_failed_says_why_beside_what_was_measured_of_it_and_has_no_mean() -> None:
    first = candidate(numbers("toys", 0.8, 0.5), numbers("pets", 0.6, 0.25))
    told = page(
        first, candidate(numbers("pets", 0.5, 0.125), why="toys, seed 0: collapsed", learning_rate=2.0)
    )
    assert "|  | learning_rate 2 |  | 50.0, 12.5 |  |  | failed: toys, seed 0: collapsed |" in told
