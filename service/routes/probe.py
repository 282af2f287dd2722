"""POST /probe: does the decision survive an attack that knows the whole deployed chain?"""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from robustclip.verdict import worst
from service.answers import ProbeAnswer, json_response, model_facts
from service.bodies import read_request
from service.disconnect import while_connected
from service.docs import body_of, problems, query_of
from service.middleware import context_of
from service.schemas import ProbeRequest
from service.startup import Service

router = APIRouter(tags=["probe"])
_QUERY = ("labels", "true_label", "target_label", "norm", "eps", "steps", "restarts", "loss", "seed", "deadline_ms")
_PROBLEMS = problems(
    *("malformed-json", "malformed-multipart", "host-refused", "origin-refused", "unknown-prompt-set", "unknown-version", "body-too-slow"),
    *("body-too-large", "unsupported-media-type", "validation", "too-many-labels", "image-undecodable", "image-format-refused"),
    *("image-too-many-pixels", "url-disabled", "prompt-set-invalid", "probe-too-expensive", "probe-unavailable", "queue-full", "starting"),
    "deadline-exceeded",
)


@router.post(
    "/probe",
    summary="Attack a decision",
    responses={200: {"model": ProbeAnswer}} | _PROBLEMS,
    openapi_extra=body_of(ProbeRequest) | {"parameters": query_of(ProbeRequest, *_QUERY)},
)
async def probe(request: Request) -> Response:
    """PGD against the served classifier, through each defense. `broken` comes with a picture that shows it; nothing is ever called robust."""
    service: Service = request.app.state.service
    engine, context = service.engine, context_of(request)
    started = time.perf_counter()
    asked = await read_request(request, ProbeRequest, service.settings.limits, labels=service.settings.probe.labels)
    context.timing.slowest("read", time.perf_counter() - started)
    service.metrics.images.labels("/probe").inc()
    reports = await while_connected(request, service.probes.run(asked, context.timing))
    return json_response(
        {
            "id": context.request_id,
            "object": "probe",
            "reports": [report.model_dump(mode="json", by_alias=True) for report in reports],
            "verdict": worst(reports),
            "model": model_facts(engine.clip, engine.encoder),
            "seed": asked.seed,
            "timing_ms": context.timing.milliseconds() | {"total": round((time.perf_counter() - started) * 1000, 3)},
        },
        headers={"X-Prompt-Set": ", ".join(dict.fromkeys(report.victim.prompt_set for report in reports))},
    )
