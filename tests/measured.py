"""Lines of results as JSON: what a test does not name is filled in."""

from typing import Any, TypeVar

from training.measuring.pages import results
from training.measuring.schema.base import Line
from training.measuring.schema.files import TableFile, results_of

AnyLine = TypeVar("AnyLine", bound=Line)

PICTURES = {"backbone": "tiny", "data": "toys", "split": "test", "defense": "none"}
SUBJECT = {**PICTURES, "prompt_set": "plain@1", "seed": 0}


def row(**facts: Any) -> dict[str, Any]:
    share = facts.get("accuracy", 0.5)
    measured = {"accuracy": share, "low": share - 0.1, "high": share + 0.1, "accuracy_8bit": share}
    taken = {"attack": None, "seconds": 0.0, "cost": {"forward": 1, "backward": 0}, "command": "robustclip"}
    return {**SUBJECT, "threat": "clean", "eps": "0", "n": 100, **measured, **taken, **facts}


def mean(**facts: Any) -> dict[str, Any]:
    share = facts.get("accuracy", 0.5)
    own = {"accuracy": share, "low": share - 0.1, "high": share + 0.1, "seeds": [0, 1], "deviation": 0.1}
    return {**PICTURES, "prompt_set": "plain@1", "threat": "clean", "eps": "0", "n": 100, **own, **facts}


def check(**facts: Any) -> dict[str, Any]:
    said = {"name": "check", "sentence": "it is so", "number": 1.0, "threshold": 0.0, "advice": ""}
    return {
        **SUBJECT,
        "rows": [["T2", "1/255"]],
        "id": "M5",
        "fired": True,
        "severity": "hard",
        **said,
        **facts,
    }


def headline(**facts: Any) -> dict[str, Any]:
    share = {"accuracy": None, "low": None, "high": None}
    return {**SUBJECT, "eps": "1/255", "n": 100, **share, "refused": [], **facts}


def paired(**facts: Any) -> dict[str, Any]:
    gap = {"a": "learned", "b": "plain", "difference": 0.2, "low": 0.1, "high": 0.3, "mcnemar": None}
    return {**PICTURES, "threat": "clean", "eps": "0", **gap, **facts}


def table(content: dict[str, Any]) -> TableFile:
    made = results_of({"title": "Toys", "says": "", **content}, field="toys.json")
    assert isinstance(made, TableFile)
    return made


def page(name: str, content: dict[str, Any]) -> str:
    """The results page of one file."""
    return results.render({name: results_of(content, field=f"{name}.json")})


def changed(line: AnyLine, **facts: Any) -> AnyLine:
    return type(line).model_validate({**line.as_json(), **facts})
