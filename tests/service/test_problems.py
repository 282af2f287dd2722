import orjson
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from robustclip.attacks import AnyAttack
from robustclip.errors import InvalidInput, PromptSetRefused, RobustClipError
from service.problems import PROBLEMS, Problem, as_problem, invalid, of_validation


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid")

    attacks: list[AnyAttack] = []
    count: int = 0


def refusal_of(data: dict[str, object]) -> Problem:
    with pytest.raises(ValidationError) as raised:
        Example.model_validate(data)
    return of_validation(raised.value, data)


def every_error(base: type[RobustClipError] = RobustClipError) -> list[type[RobustClipError]]:
    """All that the service can meet: training defines errors of its own, and other tests may have imported
    them.
    """
    below = [kind for child in base.__subclasses__() for kind in (child, *every_error(child))]
    return [kind for kind in below if not kind.__module__.startswith("training.")]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_library_has_a_status(kind: type[RobustClipError]) -> None:
    assert kind.code in PROBLEMS


@pytest.mark.parametrize("error", [RuntimeError("/root/secret.py line 3"), KeyError("secret"), MemoryError()])
def test_an_unforeseen_exception_tells_nothing(error: Exception) -> None:
    body = orjson.dumps(as_problem(error).body(instance="/classify", request_id="req_1"))
    assert b"secret" not in body
    assert b"Error" not in body
    assert orjson.loads(body)["status"] == 500


def test_a_problem_has_the_members_of_its_rfc_and_ours() -> None:
    response = invalid("#/labels/3", "a label is empty.").response(instance="/classify", request_id="req_1")
    assert response.headers["content-type"] == "application/problem+json"
    body = orjson.loads(response.body)
    assert body["type"] == "/problems/validation"
    assert (body["status"], body["instance"], body["request_id"]) == (422, "/classify", "req_1")
    assert body["errors"] == [{"pointer": "#/labels/3", "code": "validation", "detail": "a label is empty."}]


def test_pointers_name_what_was_written_and_no_branch_of_a_union() -> None:
    problem = refusal_of({"attacks": [{"kind": "pgd", "ball": {"kind": "linf", "radius": "x"}}]})
    assert [item.pointer for item in problem.errors] == ["#/attacks/0/ball/radius"]
    assert (
        refusal_of({"attacks": [{"kind": "pgd", "ball": {"kind": "linf"}}]}).errors[0].pointer
        == "#/attacks/0/ball/radius"
    )
    assert refusal_of({"a/b": 1}).errors[0].pointer == "#/a~1b"


def test_a_thousand_complaints_are_summed_up() -> None:
    problem = refusal_of({f"field{index}": 1 for index in range(1000)})
    assert len(problem.errors) <= 16
    assert "999 more" in problem.detail


def test_long_values_are_not_sent_back() -> None:
    assert len(refusal_of({"count": "x" * 1_000_000}).detail) < 200


def test_a_refused_prompt_set_names_its_reason_and_a_field_its_pointer() -> None:
    refused = as_problem(
        PromptSetRefused("1 of 8 values are NaN.", reason="not-finite", field="text_context")
    )
    assert refused.status == 422
    assert refused.errors[0].code == "not-finite"
    assert as_problem(InvalidInput("no.", field="labels/0")).errors[0].pointer == "#/labels/0"
