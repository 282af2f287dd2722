"""schemathesis reads our own OpenAPI and asks whatever it allows and whatever it forbids: no answer may be a
server error.
"""

import base64
import contextlib
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving import picture, serving

_CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
_EXAMPLES = 25


def with_a_picture(case: schemathesis.Case) -> schemathesis.Case:
    """A random text is never a picture: without this no request would get past the decoder."""
    if isinstance(case.body, dict) and "labels" in case.body:
        case.body.pop("images", None)
        uri = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
        case.body["image"] = uri if case.media_type == "application/json" else picture()
    elif isinstance(case.body, bytes):
        case.body = picture()
    return case


@pytest.mark.slow
def test_the_fuzzer_finds_no_server_error_and_no_undocumented_answer(tmp_path: Path) -> None:
    with serving(tmp_path, probe={"charged_passes": 600, "job_charged_passes": 600, "queue": 100}) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        operations = [result.ok() for result in schema.get_all_operations()]
        seen: set[int] = set()
        for operation in operations:
            for mode in GenerationMode:

                @settings(
                    max_examples=_EXAMPLES,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def fuzz(case: schemathesis.Case) -> None:
                    response = (
                        with_a_picture(case) if case.meta and case.meta.generation.mode.is_positive else case
                    ).call(timeout=60)
                    seen.add(response.status_code)
                    assert (
                        response.status_code < 500 or response.json()["code"] == "deadline-exceeded"
                    )  # it may ask for more than its own deadline
                    case.validate_response(response, checks=_CHECKS)

                with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no wrong input
                    fuzz()
        assert {operation.path for operation in operations} >= {
            "/classify",
            "/probe",
            "/prompt-sets/{name}/activate",
        }
        assert {200, 404, 422} <= seen
