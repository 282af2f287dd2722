"""Clean decisions that already are what the attack wants, and targets where the clean decision is wrong."""

import pytest
from probing import LABELS, options, picture, served_label, victim

from robustclip.errors import InvalidInput
from robustclip.models.clip import Clip
from robustclip.probing.run import probe
from robustclip.reports.report import Verdict
from robustclip.reports.witnesses import smallest_change
from robustclip.threat import Linf


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("preset", [None, "quick"])
def test_a_picture_that_already_shows_the_target_is_clean_wrong_and_no_attack_claims_it(
    tiny: Clip, named: bool, preset: str | None
) -> None:
    subject, pixels = victim(tiny), picture(tiny)
    target = served_label(subject, pixels)
    truth = next(label for label in LABELS if label != target) if named else None
    strong = {"kind": "ensemble", "ball": Linf(radius=8 / 255), "preset": preset}
    attacks = {} if preset is None else {"attacks": (strong,)}
    asked = options(true_label=truth, target_label=target, minimal=True, enough=1 / 255, **attacks)
    report = probe(subject, pixels, asked)
    assert report.verdict == Verdict(
        value="broken",
        bits="8",
        reason="clean-wrong",
        sentence=f"The clean picture is already taken for {target!r}, which is the target.",
    )
    assert (report.attacks, report.minimal_radius, report.charged) == ((), None, 1)
    assert smallest_change(report, "linf") == 0


def test_a_target_is_sought_from_the_clean_decision_also_where_that_is_wrong(tiny: Clip) -> None:
    subject, pixels = victim(tiny), picture(tiny)
    clean = served_label(subject, pixels)
    truth, target = [label for label in LABELS if label != clean][:2]
    asked = options(radius=32 / 255, true_label=truth, target_label=target, enough=32 / 255)
    report = probe(subject, pixels, asked)
    assert report.verdict.reason == "witness"
    assert f"turns {clean!r} into {target!r}" in report.verdict.sentence


def test_the_true_label_is_no_target(tiny: Clip) -> None:
    with pytest.raises(InvalidInput, match="'cat' is the true label") as refusal:
        probe(victim(tiny), picture(tiny), options(true_label="cat", target_label="cat"))
    assert refusal.value.field == "target_label"
