"""The chart of mean accuracy over the radius."""

import json
from pathlib import Path
from typing import Any

from training.pages.radii import radius_chart
from training.pages.results import main

BOTH = ["toys", "tools"]


def mean(name: str, threat: str, eps: str, share: float, data: list[str] = BOTH) -> dict[str, Any]:
    about = {"backbone": "tiny", "split": "test", "defense": "none", "data": data, "seeds": [0], "n_each": [100] * len(data)}
    return {**about, "prompt_set": name, "threat": threat, "eps": eps, "accuracy": share, "low": share - 0.1, "high": share + 0.1}


def methods() -> list[dict[str, Any]]:
    conditions = [("clean", "0", 0.8), ("T2", "1/255", 0.6), ("T2", "4/255", 0.25)]
    rows = [mean(name, *condition) for name in ("plain", "learned", "aside") for condition in conditions]
    return [*rows, mean("plain", "T3", "1/255", 0.5), mean("learned", "T3", "1/255", 0.55), mean("learned", "T2", "8/255", 0.1, data=["toys"])]


def test_who_makes_headlines_has_a_curve_over_the_radii_of_all_data_sets() -> None:
    made = radius_chart({"over_data": methods()})
    assert made.startswith("<svg ")
    assert "plain: 80 at 0, 25 at 4" in made
    assert "learned: 80 at 0, 25 at 4" in made  # 8/255 was measured on one data set only
    assert "aside" not in made
    assert "aside: 80 at 0" in radius_chart({"over_data": methods(), "paired_over_data": [{"b": "aside"}]})


def test_one_radius_is_no_curve() -> None:
    assert radius_chart({"over_data": [row for row in methods() if row["eps"] != "4/255"]}) == ""
    assert radius_chart({}) == ""


def test_the_page_shows_the_chart_and_the_check_sees_another_one(tmp_path: Path) -> None:
    rows = [{**row, "data": "toys", "n": 100, "seed": 0, "command": "robustclip evaluate"} for row in methods()[:3]]
    content = {"title": "Toys", "says": "", "results": rows, "over_data": methods()}
    (tmp_path / "toys.json").write_text(json.dumps(content))
    asked = ["--folder", str(tmp_path), "--page", str(tmp_path / "page.md")]
    assert main(asked) == 0
    assert "(results/toys-radii.svg)" in (tmp_path / "page.md").read_text()
    assert main([*asked, "--check"]) == 0
    (tmp_path / "toys-radii.svg").write_text("another")
    assert main([*asked, "--check"]) == 1
