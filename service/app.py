"""The application: routes, problem handlers, middleware, and a lifespan that owns the engine."""

import asyncio
import logging
import reprlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from robustclip.errors import RobustClipError
from service.answers import SERVICE
from service.config import ServeSettings, load_settings
from service.docs import install_docs
from service.metrics import Metrics
from service.middleware import RequestContext, SameMachine, context_of
from service.problems import Problem, as_problem, invalid
from service.routes import classify, health, jobs, probe, prompt_sets
from service.startup import Report, Service

_LAG_INTERVAL_SECONDS = 0.25
_log = logging.getLogger(__name__)

DESCRIPTION = (
    "Zero-shot image classification behind defenses, with learned prompts that change without a "
    "restart, and live attacks on every decision."
)


def create_app(
    settings: ServeSettings | None = None,
    *,
    report: Report = lambda phase: None,
    on_started: Callable[[Service], None] | None = None,
) -> FastAPI:
    """The service as an ASGI application; settings from the environment unless given.

    `report(phase)` is called with each phase of the start. `on_started(service)` is called on the event loop
    when the start is over; `service.failure` then says whether it failed. Without it a failure is logged.
    """
    settings = settings or load_settings()
    service = Service(settings, report)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        # Health and metrics answer while models load: an orchestrator can tell a slow start from a dead
        # process.
        starting = asyncio.create_task(_start(service, on_started or _log_failure))
        lag = asyncio.create_task(_watch_lag(service.metrics))
        yield
        lag.cancel()
        with suppress(asyncio.CancelledError):
            await lag
        await starting
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="robustclip",
        version=SERVICE,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    for routes in (classify, probe, jobs, prompt_sets, health):
        app.include_router(routes.router)
    install_docs(app)
    for kind in (Problem, RobustClipError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer_problem)
    app.add_middleware(SameMachine, host=settings.server.host)
    app.add_middleware(RequestContext, metrics=service.metrics, log_requests=settings.log.requests)
    return app


async def _start(service: Service, on_started: Callable[[Service], None]) -> None:
    with suppress(Exception):  # it is in service.failure
        await asyncio.to_thread(service.start)
    on_started(service)


def _log_failure(service: Service) -> None:
    error = service.failure
    if error is not None:
        _log.error(
            "the service can't start: %s",
            error,
            exc_info=None if isinstance(error, RobustClipError) else error,
        )


async def _watch_lag(metrics: Metrics) -> None:
    """Measure how late the event loop wakes up: late means that somebody blocks it."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + _LAG_INTERVAL_SECONDS
        await asyncio.sleep(_LAG_INTERVAL_SECONDS)
        metrics.loop_lag.observe(max(0.0, clock() - due))


async def _answer_problem(request: Request, error: Exception) -> Response:
    problem = _of_framework(error)
    context = context_of(request)
    if problem.code == "internal":
        _log.error("request %s failed", context.request_id, exc_info=error)
    return context.answer(problem, request.url.path)


def _of_framework(error: Exception) -> Problem:
    match error:
        case HTTPException(status_code=405):
            return Problem(
                "method-not-allowed", "this address takes other methods.", headers=error.headers or {}
            )
        case HTTPException(status_code=404):
            return Problem("unknown-route", "there is no such address.")
        case RequestValidationError():
            return _of_parameters(error)
        case _:
            return as_problem(error)


def _of_parameters(error: RequestValidationError) -> Problem:
    """What FastAPI says of a path or header parameter. It does not see bodies: `bodies` parses them."""
    first = error.errors()[0]
    return invalid(f"#/{first['loc'][-1]}", f"{first['msg']}, found {reprlib.repr(first['input'])}.")
