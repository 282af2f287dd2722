"""What happens to every request: the check of its origin, an id, timing, metrics, one log line, and a problem
for errors that nobody foresaw.

Pure ASGI: a request costs no task and no copy of its body.
"""

import logging
import re
import secrets
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.config import is_loopback
from service.metrics import Metrics
from service.problems import Problem, as_problem
from service.timing import Timing

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_KEY = "robustclip"  # where a request's context lives in its ASGI scope

_log = logging.getLogger(__name__)


@dataclass
class Context:
    """What is known about one request: its id, where its time went, and the problem it ended in."""

    request_id: str
    timing: Timing = field(default_factory=Timing)
    code: str | None = None

    def answer(self, problem: Problem, path: str) -> Response:
        """The request ends in this problem."""
        self.code = problem.code
        return problem.response(instance=path, request_id=self.request_id)


def context_of(request: Request) -> Context:
    return request.scope[_KEY]


class RequestContext:
    """The outermost layer: every answer has an id, and no exception leaves it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_requests: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log_requests = log_requests
        self._lines = structlog.stdlib.get_logger("service.requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("x-request-id", "")
        context = scope[_KEY] = Context(
            wanted if _REQUEST_ID.fullmatch(wanted) else f"req_{secrets.token_hex(12)}"
        )
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = context.request_id
                headers["server-timing"] = _server_timing(context.timing)
            await send(message)

        self._metrics.inflight.inc()
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            _log.exception("request %s failed", context.request_id)
            if not status:
                response = context.answer(as_problem(error), scope["path"])
                await response(scope, receive, send_with_headers)
        finally:
            self._metrics.inflight.dec()
            self._record(scope, context, status)

    def _record(self, scope: Scope, context: Context, status: int) -> None:
        # The template of the path, never the path itself: there may be any number of those.
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(
            scope["method"] if scope["method"].isalpha() else "other", route, str(status)
        ).observe(context.timing.seconds)
        for stage, spent in context.timing.stages.items():
            self._metrics.stages.labels(stage).observe(spent)
        if context.code is not None:
            self._metrics.rejected.labels(context.code).inc()
        if self._log_requests:
            self._lines.info(
                "request",
                method=scope["method"],
                route=route,
                status=status,
                code=context.code,
                request_id=context.request_id,
                ms=round(context.timing.seconds * 1000, 2),
                stages=context.timing.milliseconds(),
            )


class SameMachine:
    """Keeps other sites' pages out: it refuses a foreign Host on a loopback address (DNS rebinding), and a
    foreign Origin for all that is not a read.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._check_host = is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            problem = self._refusal(scope["method"], headers)
            if problem is not None:
                context: Context = scope[_KEY]
                await context.answer(problem, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if self._check_host and host and not is_loopback(_name_of(f"//{host}")):
            return Problem(
                "host-refused", f"this service answers to 127.0.0.1 and localhost, not to {host[:80]!r}."
            )
        if method in _SAFE_METHODS:
            return None
        origin = headers.get("origin")
        foreign = origin is not None and _authority(origin) != _authority(f"//{host}")
        if foreign or headers.get("sec-fetch-site") == "cross-site":
            return Problem("origin-refused", f"a page of {(origin or 'another site')[:80]!r} asked.")
        return None


def _authority(url: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        return _name_of(url), parts.port
    except ValueError:
        return "", None


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or "?"
    except ValueError:
        return "?"


def _server_timing(timing: Timing) -> str:
    return ", ".join(f"{stage};dur={milliseconds:g}" for stage, milliseconds in timing.with_total().items())
