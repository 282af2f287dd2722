"""Probe reports as SARIF 2.1.0 (OASIS, 2020), which code hosts and build servers show beside other findings.

A result is a finding about one picture. All rules are listed, also those without a finding, so that a log
shows what was looked for. Soft flags of the checks are notes: they do not make a result doubtful.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from robustclip.reports.report import ProbeReport
from robustclip.reports.witnesses import is_within, smallest_change
from robustclip.threat import Norm, radius_text

SCHEMA_URI = "https://json.schemastore.org/sarif-2.1.0.json"
ONE_LEVEL = 1 / 255

_ILLUSORY = (
    "The static attack fails and the adaptive one succeeds: what the defense seems to protect, it does not "
    "protect."
)
_SELF_TEST, _BATCH = "S", "M12"  # how the identifiers of those diagnostics begin


class Rule(NamedTuple):
    """A kind of finding: `help` says what to do about it."""

    id: str
    name: str
    level: str
    text: str
    help: str


RULES = (
    Rule(
        "ROB001",
        "BrokenWithinOneLevel",
        "error",
        "A change of at most one 8-bit level a value changes the decision.",
        "Do not let anything depend on this decision where somebody may want it to fail; use a hardened "
        "image tower.",
    ),
    Rule(
        "ROB002",
        "BrokenWithinPolicy",
        "error",
        "A change within the radius that was to be withstood changes the decision.",
        "Use a hardened image tower, other labels or prompts; or state honestly that a smaller radius is "
        "all that is needed.",
    ),
    Rule(
        "ROB003",
        "IllusoryRobustness",
        "warning",
        "An attack that knows the defense succeeds where one that does not know it fails.",
        "Count the defense as absent: whoever knows it is not stopped by it.",
    ),
    Rule(  # the change is larger than one level, and than the radius that was to be withstood
        "ROB004",
        "Broken",
        "warning",
        "A change within the radius that was tried changes the decision.",
        "Judge whether an attacker may change that much.",
    ),
    Rule(
        "ROB010",
        "MaskingSuspected",
        "warning",
        "A symptom of a false result: the attack may have failed for reasons that protect nobody.",
        "Do not take an unbroken decision for a robust one before the symptom is explained.",
    ),
    Rule(
        "ROB011",
        "SelfTestFailed",
        "error",
        "The attack misses an adversarial picture that is known to exist.",
        "Use a stronger attack.",
    ),
    Rule(
        "ROB012",
        "BatchCoupling",
        "error",
        "The decision depends on the other pictures of its batch.",
        "Remove what couples rows: batch statistics, shared random draws, early exits.",
    ),
    Rule(
        "ROB020",
        "Inconclusive",
        "note",
        "Nothing broke the decision, and nothing may be concluded from that.",
        "See the reason in the message.",
    ),
    Rule(
        "ROB030",
        "CleanWrong",
        "note",
        "The untouched picture is already decided wrongly.",
        "Improve labels, prompts or backbone first.",
    ),
)


def sarif_log(
    report: ProbeReport,
    *,
    picture: Path | None,
    norm: Norm,
    policy: float | None,
    command: str,
    exit_code: int,
) -> dict[str, Any]:
    """The log of one probe, one run.

    picture    the file as the user named it; None: it came from elsewhere
    policy     the radius (`norm`, pixel units) at which a witness violates what was asked for; None: nothing
               was asked
    command    as it could be typed; `exit_code` is what it returns
    """
    rows = {rule.id: index for index, rule in enumerate(RULES)}
    results = [
        {
            "ruleId": rule,
            "ruleIndex": rows[rule],
            "level": level or RULES[rows[rule]].level,
            "message": {"text": text},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(picture)}}}]
            if picture
            else [],
            "partialFingerprints": {"victim/v1": report.victim.digest, "picture/v1": report.input.sha256},
        }
        for rule, text, level in _findings(report, norm, policy)
    ]
    driver = {
        "name": "robustclip",
        "version": report.code_version,
        "rules": [
            {
                "id": rule.id,
                "name": rule.name,
                "shortDescription": {"text": rule.text},
                "help": {"text": rule.help},
                "defaultConfiguration": {"level": rule.level},
            }
            for rule in RULES
        ],
    }
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "invocations": [{"commandLine": command, "executionSuccessful": True, "exitCode": exit_code}],
        "artifacts": [{"location": {"uri": _uri(picture)}, "roles": ["analysisTarget"]}] if picture else [],
        "results": results,
        "properties": {
            "verdict": report.verdict.value,
            "promptSet": report.victim.prompt_set,
            "backbone": report.victim.fingerprint,
            "labels": list(report.victim.labels),
            "seed": report.seed,
        },
    }
    return {"$schema": SCHEMA_URI, "version": "2.1.0", "runs": [run]}


def _findings(report: ProbeReport, norm: Norm, policy: float | None) -> Iterator[tuple[str, str, str | None]]:
    """The rule, what is said, and the level if it is not the rule's own."""
    verdict, smallest = report.verdict, smallest_change(report, norm)
    if verdict.reason == "clean-wrong":
        yield "ROB030", verdict.sentence, None
    if policy is not None and is_within(smallest, policy):
        sentence = f"{verdict.sentence} To be withstood: {radius_text(policy, norm)} ({norm})."
        yield "ROB002", sentence, None
    elif verdict.reason != "clean-wrong" and is_within(smallest_change(report, "linf"), ONE_LEVEL):
        yield "ROB001", verdict.sentence, None
    elif verdict.value == "broken" and verdict.reason != "clean-wrong":
        yield "ROB004", verdict.sentence, None
    if report.gap is not None and report.gap.illusory:
        yield "ROB003", _ILLUSORY, None
    for flag in report.diagnostics:
        if flag.fired:
            rule = "ROB011" if flag.id.startswith(_SELF_TEST) else "ROB012" if flag.id == _BATCH else "ROB010"
            text = (
                f"{flag.id} {flag.name} ({flag.severity}): {flag.sentence} is {flag.number:.3g}, "
                f"threshold {flag.threshold:.3g}."
            )
            yield rule, text, "note" if flag.severity == "soft" else None
    if verdict.value == "inconclusive":
        yield "ROB020", verdict.sentence, None


def _uri(path: Path) -> str:
    """A URI reference: relative as it was written, or of a file."""
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
