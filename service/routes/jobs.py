"""/probe/jobs: probes in the background. `Prefer: respond-async` at POST /probe starts one."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi import Path as PathParameter
from starlette.responses import Response, StreamingResponse

from service.answers import JobAnswer, job_answer, json_response
from service.docs import problems
from service.jobs import Job
from service.problems import Problem
from service.routes.serving import Serving
from service.startup import Service

router = APIRouter(prefix="/probe/jobs", tags=["probe"])
JobId = Annotated[
    str, PathParameter(max_length=40, description="a job's id", examples=["prb_711cb3e6f22fa212b117be73"])
]
LastEventId = Annotated[
    str | None, Header(description="the id of the last event that was seen: only later ones are told")
]
_PROBLEMS = problems("host-refused", "unknown-job", "validation", "starting")
_SILENCE_SECONDS = 15  # until a comment says that the connection lives
_STREAM = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get(
    "/{id}", summary="How a job is doing, and its result", responses={200: {"model": JobAnswer}} | _PROBLEMS
)
async def state(service: Serving, id: JobId) -> Response:
    return json_response(job_answer(service.jobs.find(id)))


@router.get(
    "/{id}/events",
    summary="What a job tells, as server-sent events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
    | _PROBLEMS
    | problems("bad-header"),
)
async def events(service: Serving, id: JobId, last_event_id: LastEventId = None) -> Response:
    """Every event is a small JSON object; `run` ends a report, and the last is one of `done`, `failed`,
    `cancelled`.
    """
    job = service.jobs.find(id)
    if last_event_id is not None and not (
        last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 10
    ):
        raise Problem(
            "bad-header",
            f"expected a number in Last-Event-ID, found {last_event_id[:40]!r}.",
            help="Send the last `id:` back as it was.",
        )
    return StreamingResponse(
        _lines(service, job, int(last_event_id or 0)), media_type="text/event-stream", headers=_STREAM
    )


@router.delete(
    "/{id}",
    summary="Cancel a job, or remove one that is over",
    status_code=202,
    responses={202: {"model": JobAnswer}, 204: {"description": "removed"}}
    | _PROBLEMS
    | problems("origin-refused"),
)
async def cancel(service: Serving, id: JobId) -> Response:
    over = service.jobs.find(id).over
    job = service.jobs.cancel(id)
    return Response(status_code=204) if over else json_response(job_answer(job), status=202)


async def _lines(service: Service, job: Job, after: int) -> AsyncIterator[str]:
    silent = 0
    async for event in job.follow(after, patience_seconds=1.0):
        if event is not None:
            silent = 0
            yield f"id: {event.number}\nevent: {event.name}\ndata: {event.data}\n\n"
        elif service.draining.is_set():
            return
        elif (silent := silent + 1) % _SILENCE_SECONDS == 0:
            yield ": still running\n\n"
