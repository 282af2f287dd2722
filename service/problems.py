"""Errors as `application/problem+json` (RFC 9457). One table gives the meaning and status of every code.

An error that is not ours becomes `internal`, and its text stays in the log.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from robustclip.errors import PromptSetRefused, RobustClipError, written_path

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 16  # in one answer: for 100,000 bad labels nobody needs the whole list


class ProblemKind(NamedTuple):
    status: int
    title: str
    help: str | None = None


PROBLEMS: Mapping[str, ProblemKind] = {
    "malformed-json": ProblemKind(
        400, "The body is not valid JSON", "Send one JSON object in UTF-8; NaN and Infinity are no JSON."
    ),
    "malformed-multipart": ProblemKind(
        400,
        "The body is not valid form data",
        "Let your client build the form: curl -F image=@cat.jpg -F labels=cat,dog.",
    ),
    "bad-header": ProblemKind(400, "A header is not valid"),
    "host-refused": ProblemKind(403, "This host name is not served here", "Call 127.0.0.1 or localhost."),
    "origin-refused": ProblemKind(403, "Another site's page may not call this service"),
    "unknown-prompt-set": ProblemKind(404, "There is no such prompt set", "GET /prompt-sets lists them."),
    "unknown-version": ProblemKind(
        404, "There is no such version", "GET /prompt-sets/NAME/versions lists them."
    ),
    "unknown-job": ProblemKind(
        404, "There is no such job", "Jobs are remembered for a while, in memory: a restart forgets them."
    ),
    "unknown-route": ProblemKind(404, "There is no such address", "GET /docs lists them."),
    "method-not-allowed": ProblemKind(405, "This address takes other methods"),
    "body-too-slow": ProblemKind(
        408, "The body took too long to arrive", "Send it again over a faster connection, or send less."
    ),
    "nothing-to-roll-back": ProblemKind(409, "There is no version to return to"),
    "store-read-only": ProblemKind(
        409, "The prompt store is read-only", "Publish and activate where the store is writable."
    ),
    "gate-failed": ProblemKind(409, "Stored witnesses fool this version anew"),
    "etag-mismatch": ProblemKind(
        412, "The prompt set has changed meanwhile", "Look at it again, then decide again."
    ),
    "body-too-large": ProblemKind(413, "Too many bytes"),
    "unsupported-media-type": ProblemKind(415, "This kind of body is not understood"),
    "validation": ProblemKind(422, "The request is not valid"),
    "too-many-images": ProblemKind(422, "Too many images", "Send them in several requests."),
    "too-many-labels": ProblemKind(422, "Too many labels", "Send fewer labels."),
    "image-undecodable": ProblemKind(422, "The image can't be decoded"),
    "image-format-refused": ProblemKind(
        422, "This image format is refused", "Send JPEG, PNG or WebP, one frame."
    ),
    "image-too-many-pixels": ProblemKind(422, "The image has too many pixels"),
    "image-too-costly": ProblemKind(422, "The image takes more work than its pixels need"),
    "url-disabled": ProblemKind(422, "Images are not fetched from addresses", "Send the bytes."),
    "prompt-set-invalid": ProblemKind(422, "The prompt set is refused"),
    "purifier-refused": ProblemKind(422, "A purifier has no weights that can be used"),
    "no-decision-to-attack": ProblemKind(422, "One label is no decision", "Name the alternatives."),
    "probe-too-expensive": ProblemKind(
        422,
        "The probe costs too much",
        "Ask for fewer steps, restarts, draws or attacks, or for a job (Prefer: respond-async).",
    ),
    "client-gone": ProblemKind(499, "The client went away"),
    "internal": ProblemKind(
        500, "Something failed here", "Try again; the log has the details under this request's id."
    ),
    "nonfinite-scores": ProblemKind(
        500, "The scores are not finite", "Try another prompt set or no temperature."
    ),
    "encoder-refused": ProblemKind(500, "The image encoder is refused"),
    "unsupported-clip": ProblemKind(500, "The backbone can't be served"),
    "data-refused": ProblemKind(500, "A data folder is refused"),
    "report-refused": ProblemKind(500, "A probe report is refused"),
    "probe-unavailable": ProblemKind(501, "This defense can't be probed that way"),
    "feature-not-installed": ProblemKind(501, "A dependency is missing"),
    "queue-full": ProblemKind(503, "Too much is waiting already", "Try again after the time in Retry-After."),
    "store-busy": ProblemKind(503, "Another process is writing to the prompt store", "Try again."),
    "starting": ProblemKind(503, "The service is starting", "Ask /startupz what it is doing."),
    "store-full": ProblemKind(507, "The prompt store has no room left", "Free space on its disk."),
    "deadline-exceeded": ProblemKind(
        504, "The answer would come too late", "Ask for less, or give deadline_ms more time."
    ),
}


class ErrorItem(BaseModel):
    """One thing that is wrong: `pointer` is a JSON pointer into the request."""

    pointer: str
    code: str
    detail: str


class ProblemBody(BaseModel):
    """RFC 9457 with a stable `code`, the request's id, the fields at fault and what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[ErrorItem]
    help: str | None


@dataclass
class Problem(Exception):
    """An error as the answer to a request; `code` is a key of PROBLEMS."""

    code: str
    detail: str
    errors: Sequence[ErrorItem] = ()
    help: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def status(self) -> int:
        return PROBLEMS[self.code].status

    def at(self, pointer: str) -> "Problem":
        """The same problem about another place in the request."""
        return Problem(
            self.code,
            self.detail,
            [ErrorItem(pointer=pointer, code=self.code, detail=self.detail)],
            self.help,
            self.headers,
        )

    def body(self, *, instance: str, request_id: str) -> dict[str, Any]:
        kind = PROBLEMS[self.code]
        return {
            "type": f"/problems/{self.code}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
            "request_id": request_id,
            "errors": [item.model_dump() for item in self.errors],
            "help": self.help or kind.help,
        }

    def response(self, *, instance: str, request_id: str) -> Response:
        content = orjson.dumps(self.body(instance=instance, request_id=request_id))
        return Response(content, self.status, headers=dict(self.headers), media_type=MEDIA_TYPE)


def invalid(pointer: str, detail: str, *, code: str = "validation", help: str | None = None) -> Problem:
    """A problem about one field."""
    return Problem(code, detail, [ErrorItem(pointer=pointer, code=code, detail=detail)], help)


def as_problem(error: Exception) -> Problem:
    """The problem that an exception is to the client."""
    match error:
        case Problem():
            return error
        case PromptSetRefused():
            item = ErrorItem(
                pointer=f"#/{error.field or 'prompt_set'}", code=error.reason, detail=error.message
            )
            return Problem(error.code, f"{error.reason}: {error.message}", [item], error.help)
        case RobustClipError() if error.code in PROBLEMS:
            errors = (
                [ErrorItem(pointer=f"#/{error.field}", code=error.code, detail=error.message)]
                if error.field
                else []
            )
            return Problem(error.code, error.message, errors, error.help)
        case _:
            return Problem("internal", "The request failed for a reason that is not its own.")


def of_validation(error: ValidationError, data: object) -> Problem:
    """The first complaints of a request model about `data`, each with a pointer into it."""
    items: list[ErrorItem] = []
    for complaint in error.errors(include_url=False, include_context=False)[:_MAX_ERRORS]:
        value, missing = complaint["input"], complaint["type"] == "missing"
        path = written_path(complaint["loc"], data, missing=missing)
        message = complaint["msg"].removeprefix("Value error, ").rstrip(".")
        found = (
            f", found {reprlib.repr(value)}"
            if not missing and isinstance(value, str | int | float | None)
            else ""
        )
        pointer = "#/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in path)
        items.append(
            ErrorItem(pointer=pointer, code=complaint["type"].replace("_", "-"), detail=f"{message}{found}.")
        )
    # A union complains once for every branch; the branch that got deepest is the one that was meant.
    meant = [
        item for item in items if not any(other.pointer.startswith(f"{item.pointer}/") for other in items)
    ]
    first, further = meant[0], error.error_count() - (len(items) - len(meant)) - 1
    code = first.code if first.code in PROBLEMS else "validation"
    rest = f" ({further} more)" if further else ""
    return Problem(code, f"{first.pointer.removeprefix('#/')}: {first.detail}{rest}", meant)
