"""The section of the results page says what the JSON of `robustclip certified` says."""

from typing import Any

import measured


def part(count: int, n: int = 200) -> dict[str, Any]:
    return {"count": count, "share": count / n, "low": count / n - 0.05, "high": count / n + 0.05}


def row(sigma: float, **changes: Any) -> dict[str, Any]:
    asked = {
        "backbone": "tiny",
        "prompt_set": "plain@11",
        "data": "toys",
        "split": "test",
        "defense": "none",
        "denoise": "own",
        "seed": 0,
        "n": 200,
    }
    rule = {
        "sigma": sigma,
        "choosing": 100,
        "votes": 500,
        "alpha": 0.001,
        "ceiling_l2": 2.2 * sigma,
        "command": f"robustclip certified --sigma {sigma}",
    }
    found = {"exploratory": False, "cost": {"forward": 1, "backward": 0}}
    found |= {"right": part(120), "abstained": part(10), "certified": part(150)}
    within = [{"l2": 0.05, "linf": "0.0768/255", **part(100)}, {"l2": 0.25, "linf": "0.384/255", **part(60)}]
    return {**asked, **rule, **found, "within": within, **changes}


def page(*rows: dict[str, Any]) -> str:
    words = {"title": "Votes", "says": "Most hold."}
    return measured.page("votes", {"kind": "certified", **words, "results": list(rows)})


def test_each_rule_is_a_column_and_each_count_a_line() -> None:
    told = page(row(0.1), row(0.25, right=part(80), denoise=None, defense="jpeg:75"))
    assert (
        "| per cent of all pictures | plain@11, sigma 0.1, denoised | plain@11, sigma 0.25, not denoised, "
        "then jpeg:75 |" in told
    )
    assert "| right by 500 votes | 60.0 (55.0 to 65.0) | 40.0 (35.0 to 45.0) |" in told
    assert "| no answer by 500 votes | 5.0 (0.0 to 10.0) | 5.0 (0.0 to 10.0) |" in told
    assert "| right within L2 0.25 (Linf 0.384/255) | 30.0 (25.0 to 35.0) | 30.0 (25.0 to 35.0) |" in told
    assert (
        "500 votes after 100 that choose the label, alpha 0.001 a picture, so radii of at most 0.22" in told
    )
    assert "    robustclip certified --sigma 0.25" in told
    assert "Most hold." in told


def test_answers_by_other_numbers_of_votes_stand_in_lines_of_their_own() -> None:
    told = page(row(0.1), row(0.25, votes=1000, right=part(80)))
    assert "| right by 500 votes | 60.0 (55.0 to 65.0) |  |" in told
    assert "| right by 1,000 votes |  | 40.0 (35.0 to 45.0) |" in told


def test_what_fell_is_told_of_those_that_were_attacked() -> None:
    attacks = [
        {"norm": "l2", "factor": 0.99, "n": 120, "fell": 0, "no_answer": 0, "low": 0.0, "high": 0.031},
        {"norm": "linf", "factor": 4, "n": 0, "fell": 0, "no_answer": 0},
    ]
    told = page(row(0.1, attacks=attacks, direct={"n": 10, "same": 10}), row(0.25))
    assert "| fell to an attack at 0.99 of the L2 radius | 0 of 120 (0.0 to 3.1 %) |  |" in told
    assert "| fell to an attack at 4 of the Linf radius | 0 of 0 |  |" in told
    assert "| same votes without the kept embeddings | 10 of 10 |  |" in told
