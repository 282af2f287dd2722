"""The chart of mean accuracy over the radius."""

import json
from pathlib import Path
from typing import Any

import measured

from training.measuring.pages.radii import radius_chart
from training.measuring.pages.results import main


def row(method: str, threat: str, eps: str, share: float, data: str, seed: int = 0) -> dict[str, Any]:
    about = {"method": method, "prompt_set": method, "data": data, "seed": seed}
    return measured.row(threat=threat, eps=eps, accuracy=share, **about)


def pairs(*sets: str) -> list[dict[str, Any]]:
    """Differences of means, of two methods each."""
    over = {"data": ["toys", "tools"], "seeds": [0], "n_each": [100, 100]}
    return [measured.paired(**over, **dict(zip("ab", names.split(), strict=True))) for names in sets]


def methods() -> list[dict[str, Any]]:
    conditions = [("clean", "0", 0.8), ("T2", "1/255", 0.6), ("T2", "4/255", 0.25)]
    shifts = {"toys": 0.1, "tools": -0.1}
    rows = [
        row(name, at, eps, share + by, data)
        for name in ("plain", "learned", "aside")
        for at, eps, share in conditions
        for data, by in shifts.items()
    ]
    return [*rows, *(row(name, "T3", "1/255", 0.5, data) for name in ("plain", "learned") for data in shifts)]


def test_who_makes_headlines_has_a_curve_over_the_radii_of_all_data_sets() -> None:
    more = [
        row("learned", "T2", "8/255", 0.1, "toys"),
        row("learned", "T2", "4/255", 0.9, "toys", seed=1),
    ]  # on one data set only; of another seed
    made = radius_chart(measured.table({"results": methods() + more}))
    assert made.startswith("<svg ")
    assert "over 2 data sets, seed 0" in made
    assert "plain: 80 at 0, 25 at 4" in made
    assert "learned: 80 at 0, 25 at 4" in made
    assert "aside" not in made
    compared = pairs("learned aside", "other aside", "other learned", "last aside")
    assert "aside: 80 at 0" in radius_chart(
        measured.table({"results": methods(), "paired_over_data": compared})
    )  # all others are compared with it
    assert "aside" not in radius_chart(
        measured.table(
            {
                "results": methods(),
                "paired_over_data": [*compared, *pairs("last learned", "more learned")],
            }
        )
    )


def test_one_radius_is_no_curve() -> None:
    assert (
        radius_chart(measured.table({"results": [row for row in methods() if row["eps"] != "4/255"]})) == ""
    )
    assert radius_chart(measured.table({"results": []})) == ""


def test_the_page_shows_the_chart_and_the_check_sees_another_one(tmp_path: Path) -> None:
    (tmp_path / "toys.json").write_text(json.dumps({"title": "Toys", "says": "", "results": methods()}))
    asked = ["--folder", str(tmp_path), "--page", str(tmp_path / "page.md")]
    assert main(asked) == 0
    assert "(results/toys-radii.svg)" in (tmp_path / "page.md").read_text()
    assert main([*asked, "--check"]) == 0
    (tmp_path / "toys-radii.svg").write_text("another")
    assert main([*asked, "--check"]) == 1
