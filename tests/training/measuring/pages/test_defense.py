"""The section of a table of defenses."""

import json
from pathlib import Path
from typing import Any

import measured

from training.measuring.pages.defense import draws_chart
from training.measuring.pages.results import main


def row(
    defense: str, threat: str, share: float, *, n: int = 100, taken: int = 1, **facts: Any
) -> dict[str, Any]:
    """`taken`: the draws that the attack says it had, be they the level's own or not."""
    clean = threat == "clean"
    about = {
        "defense": defense,
        "threat": threat,
        "eps": "0" if clean else "2/255",
        "n": n,
        "attack": None if clean else {"draws": taken},
    }
    search = {"search": "bfloat16"} if threat == "T2" else {}
    return measured.row(method="plain", accuracy=share, **about, **search, **facts)


def illusion(
    defense: str, difference: float, gain: float | None, *, n: int = 100, **told: Any
) -> dict[str, Any]:
    def of(value: float) -> dict[str, Any]:
        decided = abs(value) > 0.1
        return {
            "difference": value,
            "low": value - 0.05,
            "high": value + 0.05,
            "mcnemar": 0.01 if decided else 0.5,
        }

    worst = {"value": 0.5 - difference, "low": 0.0, "high": 1.0, "of": ["T2"]}
    strong = {
        "worst": worst,
        "only_looks_strong": difference > 0.1,
        "random": False,
        "gain": None if gain is None else of(gain),
    }
    holds = None if gain is None or abs(gain) < 0.1 else "more" if gain > 0 else "less"
    compared = {"unequal": [], "holds": holds, **told}
    return {
        **measured.SUBJECT,
        "method": "plain",
        "defense": defense,
        "eps": "2/255",
        "n": n,
        "static": 0.5,
        **of(difference),
        **strong,
        **compared,
    }


def content(**changes: Any) -> dict[str, Any]:
    rows = [
        *(
            row(defense, threat, share)
            for defense in ("none", "jpeg:75")
            for threat, share in (("T2", 0.2), ("static", 0.6), ("clean", 0.8))
        ),
        *(row("resize_pad:0.9", threat, share, n=64) for threat, share in (("clean", 0.8), ("static", 0.6))),
        row("resize_pad:0.9", "T2", 0.4, n=64, taken=4, draws=4, steps=20),
        *(
            row("diffusion:0.1", "T2", share, n=8, taken=draws, steps=20, draws=draws)
            for draws, share in ((1, 0.75), (4, 0.5))
        ),
        row("diffusion:0.1", "T2", 0.375, n=8, taken=20, steps=20),
    ]
    defenses = {"none": "none", "jpeg": "jpeg:75", "rescale": "resize_pad:0.9", "diffusion": "diffusion:0.1"}
    told = [illusion("jpeg:75", 0.4, -0.2), illusion("resize_pad:0.9", 0.05, 0.3, n=64)]
    found = {
        "title": "Glass",
        "says": "It breaks.",
        "command": "robustclip suite glass",
        "max_passes": 1,
        "defenses": defenses,
        "results": rows,
    }
    return {**found, "illusions": told, **changes}


def test_a_defense_is_a_line_with_what_it_seems_and_what_it_holds() -> None:
    page = measured.page("glass", content())
    assert "### plain, toys test, seed 0" in page
    columns = "clean | static 2/255 | T2 2/255, searched in bfloat16"
    assert (
        f"| defense | pictures | {columns} | static - worst | only looks strong | worst - worst without a "
        f"defense |" in page
    )
    assert "| none | 100 | 80.0 (70.0 to 90.0) | 60.0 (50.0 to 70.0) | 20.0 (10.0 to 30.0) |  |  |  |" in page
    assert "| jpeg | 100 |" in page
    assert "| **+40.0 (+35.0 to +45.0; p 0.01)** | yes | **-20.0 (-25.0 to -15.0; p 0.01)** |" in page
    assert (
        "40.0 (30.0 to 50.0); 20 steps, 4 draws | +5.0 (+0.0 to +10.0; p 0.5) |  | **+30.0 (+25.0 to +35.0; "
        "p 0.01)** |" in page
    )


def test_which_defenses_only_look_strong_is_a_sentence() -> None:
    page = measured.page("glass", content())
    assert "- **Only look strong**: jpeg." in page
    assert "Hold more than no defense does, each under its worst attack: rescale." in page
    assert "Hold less than no defense does, each under its worst attack: jpeg." in page
    honest = measured.page("glass", content(illusions=[illusion("jpeg:75", 0.0, 0.0)]))
    assert "None of them is shown to look stronger than it is." in honest
    assert "Hold more than no defense does, each under its worst attack: none is shown to." in honest


def test_who_was_attacked_less_hard_is_named_with_the_numbers_and_not_said_to_hold_more() -> None:
    parts = [("T2", "steps", 20, 100), ("T2", "draws", 1, 20), ("black-box", "queries", 25, 100)]
    less = [dict(zip(("threat", "what", "taken", "against"), part, strict=True)) for part in parts]
    unlike = illusion("resize_pad:0.9", 0.05, 0.3, n=64, unequal=less, holds=None, random=True)
    page = measured.page("glass", content(illusions=[illusion("jpeg:75", 0.4, 0.2), unlike]))
    assert "Hold more than no defense does, each under its worst attack: jpeg." in page
    numbers = (
        "T2: 20 steps against 100, T2: 1 draw against the level's own 20, black-box: 25 queries against 100"
    )
    assert (
        f"- Attacked less hard than no defense was, so that none of these is said to hold more: rescale "
        f"({numbers})." in page
    )
    assert "| +30.0 (+25.0 to +35.0; p 0.01); attacked less hard |" in page
    assert "- Random, so that every judging has its luck: rescale." in page
    harder = illusion("jpeg:75", 0.4, -0.3, unequal=[{**less[0], "taken": 200}], holds=None)
    page = measured.page("glass", content(illusions=[harder]))
    assert (
        "- Attacked harder than no defense was, so that none of these is said to hold less: jpeg (T2: 200 "
        "steps against 100)." in page
    )
    assert "Hold less than no defense does, each under its worst attack: none is shown to." in page
    assert "Random" not in page


def test_how_many_draws_a_gradient_needs_is_counted_on_few_pictures() -> None:
    page = measured.page("glass", content())
    assert "| left standing | 1 draw | 4 draws | 20 draws |" in page
    assert (
        "| diffusion, plain, toys test, seed 0, T2 2/255, 20 steps, searched in bfloat16, 8 pictures | 6/8 "
        "| 4/8 | 3/8 |" in page
    )
    assert "| diffusion | 8 |" not in page
    assert "(results/glass-draws.svg)" in page
    drawn = draws_chart(measured.table(content()))
    assert "diffusion, plain, 8 pictures: 6 at 1, 3 at 20 (draws behind a gradient)." in drawn
    assert draws_chart(measured.table({**content(), "results": content()["results"][:6]})) == ""


def test_the_chart_is_written_and_compared_with_the_page(tmp_path: Path) -> None:
    (tmp_path / "glass.json").write_text(json.dumps(content()))
    places = ["--folder", str(tmp_path), "--page", str(tmp_path / "RESULTS.md")]
    assert main(places) == 0
    assert main([*places, "--check"]) == 0
    (tmp_path / "glass-draws.svg").write_text("<svg/>")
    assert main([*places, "--check"]) == 1


def test_prompt_sets_are_compared_behind_each_defense() -> None:
    pair = measured.paired(
        threat="T2",
        eps="2/255",
        n=100,
        defense="jpeg:75",
        a="advpt",
        b="plain",
        difference=0.02,
        low=-0.01,
        high=0.05,
        mcnemar=0.5,
    )
    page = measured.page("glass", content(paired=[pair]))
    assert "### advpt - plain, toys test" in page
    assert "| jpeg | 100 | +2.0 (-1.0 to +5.0; p 0.5) |" in page
