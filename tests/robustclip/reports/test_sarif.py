"""SARIF logs: what the standard requires with the values that it allows, and a finding for all that a report
holds against a decision.
"""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from probed import Probed, probed

from robustclip.models.clip import Clip
from robustclip.reports.report import ProbeReport
from robustclip.reports.sarif import RULES, sarif_log
from robustclip.sanity.symptoms import Diagnostic

PICTURE = Path("my pictures/a cat #1.jpg")
LOG = {"$schema", "version", "runs"}
RUN = {"tool", "invocations", "artifacts", "results", "properties"}
RESULT = {"ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"}
RULE = {"id", "name", "shortDescription", "help", "defaultConfiguration"}
LEVELS = {"none", "note", "warning", "error"}


def log(
    report: ProbeReport, *, picture: Path | None = PICTURE, policy: float | None = None
) -> dict[str, Any]:
    made = sarif_log(
        report, picture=picture, norm="linf", policy=policy, command="robustclip probe", exit_code=0
    )
    assert json.loads(json.dumps(made, allow_nan=False)) == made, "plain JSON"
    check(made)
    return made


def check(made: dict[str, Any]) -> None:
    """Sections 3.13 to 3.58 of the standard, as far as we write them: required members there, no member that
    its schema does not know.
    """
    assert made.keys() <= LOG
    assert made["version"] == "2.1.0"
    for run in made["runs"]:
        assert run.keys() <= RUN
        driver = run["tool"]["driver"]
        assert driver["name"]
        identifiers = [rule["id"] for rule in driver["rules"]]
        assert len(set(identifiers)) == len(identifiers)
        for rule in driver["rules"]:
            assert rule.keys() <= RULE
            assert rule["shortDescription"]["text"].endswith(".")
            assert rule["help"]["text"]
            assert rule["defaultConfiguration"]["level"] in LEVELS
        for result in run["results"]:
            assert result.keys() <= RESULT
            assert result["message"]["text"]
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["level"] in LEVELS
            assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
            for location in result["locations"]:
                check_uri(location["physicalLocation"]["artifactLocation"]["uri"])
        for artifact in run["artifacts"]:
            check_uri(artifact["location"]["uri"])
        for invocation in run["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)


def check_uri(uri: str) -> None:
    assert not set(uri) & set(' "<>\\^`{|}')
    assert not urlparse(uri).fragment


def rules_of(made: dict[str, Any]) -> list[str]:
    return [result["ruleId"] for result in made["runs"][0]["results"]]


@pytest.fixture(scope="module")
def broken(tiny: Clip) -> Probed:
    return probed(tiny, radii=(8,))


def test_all_rules_are_listed_even_if_they_say_nothing(tiny: Clip) -> None:
    made = log(probed(tiny, radii=(0.001,)).report)
    assert rules_of(made) == []
    assert [rule["id"] for rule in made["runs"][0]["tool"]["driver"]["rules"]] == [rule.id for rule in RULES]


def test_a_witness_is_an_error_by_the_radius_that_it_keeps_to(tiny: Clip, broken: Probed) -> None:
    assert rules_of(log(broken.report)) == ["ROB004"]
    assert rules_of(log(broken.report, policy=8 / 255)) == ["ROB002"]
    assert rules_of(log(broken.report, policy=1 / 255)) == ["ROB004"]
    tight = probed(tiny, radii=(1,)).report
    assert rules_of(log(tight)) == (["ROB001"] if tight.verdict.value == "broken" else [])


def test_a_result_names_the_picture_and_what_was_attacked(broken: Probed) -> None:
    made = log(broken.report)
    result = made["runs"][0]["results"][0]
    assert (
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        == "my%20pictures/a%20cat%20%231.jpg"
    )
    assert result["partialFingerprints"] == {
        "victim/v1": broken.report.victim.digest,
        "picture/v1": broken.report.input.sha256,
    }
    assert result["message"]["text"].startswith(broken.report.verdict.sentence)
    absolute = log(broken.report, picture=Path("/pictures/a cat.jpg"))
    assert absolute["runs"][0]["artifacts"][0]["location"]["uri"] == "file:///pictures/a%20cat.jpg"
    assert log(broken.report, picture=None)["runs"][0]["results"][0]["locations"] == []


def test_a_clean_picture_that_is_wrong_violates_every_policy(tiny: Clip, broken: Probed) -> None:
    truth = next(label for label in broken.report.victim.labels if label != broken.report.input.clean.label)
    report = probed(tiny, radii=(0.001,), true_label=truth).report
    assert rules_of(log(report)) == ["ROB030"]
    assert rules_of(log(report, policy=1 / 255)) == ["ROB030", "ROB002"]


@pytest.mark.parametrize(
    ("id", "severity", "rule", "level"),
    [
        ("M1", "hard", "ROB010", "warning"),
        ("M4", "soft", "ROB010", "note"),
        ("M12", "hard", "ROB012", "error"),
        ("S1", "hard", "ROB011", "error"),
    ],
)
def test_every_flag_that_fired_is_a_finding(
    tiny: Clip, id: str, severity: Any, rule: str, level: str
) -> None:
    report = probed(tiny, radii=(0.001,)).report
    flags = tuple(
        Diagnostic(
            id=id, name="a name", fired=fired, severity=severity, number=1, threshold=0.5, sentence="share"
        )
        for fired in (True, False)
    )
    made = log(report.model_copy(update={"diagnostics": flags}))
    assert rules_of(made) == [rule]
    assert made["runs"][0]["results"][0]["level"] == level
    assert "share is 1" in made["runs"][0]["results"][0]["message"]["text"]


def test_inconclusive_is_a_note_and_an_illusion_a_warning(tiny: Clip) -> None:
    report = probed(tiny, radii=(0.001,), defense="bit_depth:3", modes=("static",)).report
    assert report.verdict.value == "inconclusive"
    assert "ROB020" in rules_of(log(report))
    both = probed(tiny, radii=(0.001,), defense="bit_depth:3").report
    assert both.gap is not None
    illusory = both.model_copy(update={"gap": both.gap.model_copy(update={"illusory": True})})
    assert "ROB003" in rules_of(log(illusory))
