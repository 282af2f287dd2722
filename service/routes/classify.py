"""POST /classify: which of these labels does the picture show?"""

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.answers import ClassifyAnswer, classify_answer, json_response
from service.bodies import read_request
from service.disconnect import while_connected
from service.docs import body_of, problems, query_of
from service.middleware import context_of
from service.problems import Problem
from service.schemas import ClassifyRequest
from service.startup import Service

router = APIRouter(tags=["classify"])
_QUERY = ("labels", "prompt_set", "defense", "top_k", "temperature", "seed", "deadline_ms")
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
        "too-many-images",
        "too-many-labels",
        "image-undecodable",
        "image-format-refused",
    ),
    *(
        "image-too-many-pixels",
        "url-disabled",
        "prompt-set-invalid",
        "queue-full",
        "starting",
        "deadline-exceeded",
    ),
)


@router.post(
    "/classify",
    summary="Choose among labels",
    responses={200: {"model": ClassifyAnswer}} | _PROBLEMS,
    openapi_extra=body_of(ClassifyRequest) | {"parameters": query_of(ClassifyRequest, *_QUERY)},
)
async def classify(request: Request) -> Response:
    """JSON with base64, form data, or the image itself as the body with options in the query. With several
    images a bad one fails alone.
    """
    service: Service = request.app.state.service
    engine, context = service.engine, context_of(request)
    started = time.perf_counter()
    asked = await read_request(request, ClassifyRequest, service.settings.limits)
    context.timing.slowest("read", time.perf_counter() - started)
    service.metrics.images.labels("/classify").inc(len(asked.pictures()))
    classified = await while_connected(request, engine.classify(asked, context.timing))
    failed = [result for result in classified.results if isinstance(result, Problem)]
    if len(failed) == len(classified.results):
        errors = [item for problem in failed for item in problem.errors]
        raise Problem(failed[0].code, failed[0].detail, errors, failed[0].help)
    timing_ms = context.timing.milliseconds() | {"total": round((time.perf_counter() - started) * 1000, 3)}
    answer = classify_answer(engine, classified, request_id=context.request_id, timing_ms=timing_ms)
    return json_response(answer, headers={"X-Prompt-Set": str(classified.loaded.ref)})
