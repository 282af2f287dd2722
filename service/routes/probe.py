"""POST /probe: does the decision survive an attack that knows the whole deployed chain?"""

import functools
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.answers import JobAnswer, ProbeAnswer, job_answer, json_response, probe_answer
from service.bodies import read_request
from service.disconnect import while_connected
from service.docs import body_of, problems, query_of
from service.engine import Engine
from service.middleware import context_of
from service.probing import Probed
from service.schemas import ProbeRequest
from service.startup import Service
from service.timing import Timing

router = APIRouter(tags=["probe"])
_QUERY = (
    "labels",
    "true_label",
    "target_label",
    "norm",
    "eps",
    "preset",
    "steps",
    "restarts",
    "minimal",
    "loss",
    "seed",
    "deadline_ms",
)
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "enum": ["respond-async"]},
    "description": "don't wait: answer 202 with a job",
}
_PROBLEMS = problems(
    *(
        "malformed-json",
        "malformed-multipart",
        "host-refused",
        "origin-refused",
        "unknown-prompt-set",
        "unknown-version",
        "body-too-slow",
    ),
    *(
        "body-too-large",
        "unsupported-media-type",
        "validation",
        "too-many-labels",
        "image-undecodable",
        "image-format-refused",
    ),
    *(
        "image-too-many-pixels",
        "url-disabled",
        "prompt-set-invalid",
        "probe-too-expensive",
        "probe-unavailable",
        "queue-full",
        "starting",
    ),
    "deadline-exceeded",
)


@router.post(
    "/probe",
    summary="Attack a decision",
    responses={
        200: {"model": ProbeAnswer},
        202: {"model": JobAnswer, "description": "started as a job; Location says where to look"},
    }
    | _PROBLEMS,
    openapi_extra=body_of(ProbeRequest) | {"parameters": [*query_of(ProbeRequest, *_QUERY), _PREFER]},
)
async def probe(request: Request) -> Response:
    """PGD or the strong attack against the served classifier, through each defense. `broken` comes with a
    picture that shows it.

    Nothing is ever called robust. When the time is over, the reports hold what was found so far, and say so.
    """
    service: Service = request.app.state.service
    engine, context = service.engine, context_of(request)
    started = time.perf_counter()
    asked = await read_request(
        request, ProbeRequest, service.settings.limits, labels=service.settings.probe.labels
    )
    context.timing.slowest("read", time.perf_counter() - started)
    service.metrics.images.labels("/probe").inc()
    if "respond-async" in {
        part.split(";")[0].strip().lower() for part in request.headers.get("prefer", "").split(",")
    }:
        admitted = await service.probes.admit(asked, job=True)
        job = service.jobs.start(admitted, functools.partial(_result, engine, asked.seed))
        headers = {"Location": f"/probe/jobs/{job.id}", "Preference-Applied": "respond-async"}
        return json_response(job_answer(job), headers=headers, status=202)
    probed = await while_connected(request, service.probes.run(asked, context.timing))
    timing_ms = context.timing.milliseconds() | {"total": round((time.perf_counter() - started) * 1000, 3)}
    return json_response(
        probe_answer(engine, probed, request_id=context.request_id, seed=asked.seed, timing_ms=timing_ms),
        headers={
            "X-Prompt-Set": ", ".join(dict.fromkeys(report.victim.prompt_set for report in probed.reports))
        },
    )


def _result(engine: Engine, seed: int, probed: Probed, id: str, timing: Timing) -> Mapping[str, Any]:
    return probe_answer(engine, probed, request_id=id, seed=seed, timing_ms=timing.milliseconds())
