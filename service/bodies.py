"""From an HTTP request to the fields of a request model, whatever the form: JSON, form data, or an image as
the body with options in the query.

Bytes are counted while they are read, nothing is written to disk, and long parsing leaves the event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from robustclip.images.kinds import is_known
from robustclip.models.labels import split_labels
from service.config import LimitSettings
from service.problems import Problem, invalid
from service.schemas import parse

JSON, FORM = "application/json", "multipart/form-data"
IMAGES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream")
ACCEPTED = (JSON, FORM, *IMAGES)
# What clients send instead of a picture's type, or of none at all: the first bytes decide.
_UNTYPED = ("", "application/octet-stream", "binary/octet-stream")
_SMALL_BODY = 256 * 1024  # parsed on the event loop in well under a millisecond
_SLOWEST_BYTES_A_SECOND = 10_000
_WORDS = ("labels", "prompt_sets", "modes", "return")  # what `split_labels` reads, or repeated
_LISTS = ("defenses", "attacks")  # a JSON list, or repeated
# Where the rest of a body is not read, its connection can't carry another request.
_CLOSE = {"Connection": "close"}

Model = TypeVar("Model", bound=BaseModel)


async def read_request(
    request: Request, model: type[Model], limits: LimitSettings, *, labels: int | None = None
) -> Model:
    """The request in any of the accepted forms, checked. Raises Problem."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM, *_UNTYPED) and not kind.startswith("image/"):
        raise unsupported(kind, ACCEPTED)
    if kind == FORM:
        body, fields = b"", await _read_form(request, limits)
    else:
        body, fields = await read_body(request, limits), dict[str, Any]()
    if not kind and not is_known(body):
        raise unsupported(kind, ACCEPTED)

    def finish() -> Model:
        sent = fields if kind == FORM else load_json(body) if kind == JSON else {"image": body}
        query = _from_texts(request.query_params.multi_items())
        return parse(model, _merged(sent, query), limits, labels=labels)

    large = len(body) > _SMALL_BODY or kind == FORM
    return await asyncio.to_thread(finish) if large else finish()


async def read_json(request: Request, model: type[Model], limits: LimitSettings) -> Model:
    """A request that comes as JSON only."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise unsupported(kind, (JSON,))
    return parse(model, load_json(await read_body(request, limits)), limits)


async def read_body(request: Request, limits: LimitSettings) -> bytes:
    """The whole body. Raises Problem `body-too-large`, `body-too-slow`, `unsupported-media-type`
    (compressed), `client-gone`.
    """
    async with _patience(limits) as patience:
        return b"".join([chunk async for chunk in _chunks(request, limits, patience)])


def load_json(body: bytes) -> dict[str, Any]:
    """A JSON object. orjson refuses NaN, and nesting that is too deep."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem("malformed-json", f"{error}.") from error
    if not isinstance(found, dict):
        raise invalid("#/", "expected a JSON object.")
    return cast(dict[str, Any], found)


def unsupported(kind: str, accepted: Sequence[str]) -> Problem:
    detail = f"expected {', '.join(accepted)}, found {kind[:80] or 'no Content-Type'}."
    return Problem(
        "unsupported-media-type",
        detail,
        help="With curl: -F image=@cat.jpg -F labels=cat,dog.",
        headers={"Accept-Post": ", ".join(accepted)},
    )


@asynccontextmanager
async def _patience(limits: LimitSettings) -> AsyncGenerator[asyncio.Timeout, None]:
    try:
        async with asyncio.timeout(limits.body_seconds) as patience:
            yield patience
    except TimeoutError as error:
        raise Problem(
            "body-too-slow",
            f"waited {limits.body_seconds:g} seconds for the next part of the body.",
            headers=_CLOSE,
        ) from error
    except ClientDisconnect as error:
        raise Problem("client-gone", "the client left while it was sending.") from error


async def _chunks(
    request: Request, limits: LimitSettings, patience: asyncio.Timeout
) -> AsyncGenerator[bytes, None]:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(
            "unsupported-media-type",
            "compressed bodies are not accepted.",
            help="Images are compressed already: send them as they are.",
        )
    announced = request.headers.get("content-length", "0")
    if not announced.isascii() or not announced.isdigit():
        raise Problem("bad-header", "Content-Length is no number.")
    _check_size(int(announced), limits)
    clock = asyncio.get_running_loop().time
    received, started = 0, clock()
    async for chunk in request.stream():
        received += len(chunk)
        _check_size(received, limits)
        patience.reschedule(started + limits.body_seconds + received / _SLOWEST_BYTES_A_SECOND)
        yield chunk


def _check_size(size: int, limits: LimitSettings) -> None:
    if size > limits.body_bytes:
        raise Problem(
            "body-too-large", f"expected a body of at most {limits.body_bytes} bytes.", headers=_CLOSE
        )


class _InMemoryParser(MultiPartParser):
    """Starlette's parser without temporary files: bodies are small, and pictures are not written to disk.

    It also refuses a body whose closing delimiter (RFC 2046, section 5.1.1) never comes: fields may be lost.
    """

    ended = False

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], limits: LimitSettings) -> None:
        self.spool_max_size = limits.body_bytes + 1
        texts = limits.labels * limits.label_characters * 4
        super().__init__(
            headers,
            self._up_to_its_end(stream),
            max_files=limits.images + 1,
            max_fields=limits.labels + 16,
            max_part_size=texts,
        )

    def on_end(self) -> None:
        self.ended = True

    async def _up_to_its_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self.ended:
            raise MultiPartException("The closing delimiter is missing: the body was cut.")


async def _read_form(request: Request, limits: LimitSettings) -> dict[str, Any]:
    try:
        async with _patience(limits) as patience:
            form = await _InMemoryParser(request.headers, _chunks(request, limits, patience), limits).parse()
        try:
            images: list[bytes | str] = []
            texts: list[tuple[str, str]] = []
            fields: dict[str, Any] = {}
            if len(form.getlist("request")) > 1:
                raise invalid("#/request", "found several times, expected once.")
            for name, value in form.multi_items():
                if name in ("image", "images"):
                    images.append(await value.read() if isinstance(value, UploadFile) else value)
                elif name == "request":
                    fields = load_json(
                        await value.read() if isinstance(value, UploadFile) else value.encode()
                    )
                elif isinstance(value, UploadFile):
                    raise invalid(f"#/{name}", "expected text, found a file.")
                else:
                    texts.append((name, value))
            several = len(images) > 1 or "images" in form
        finally:
            await form.close()
    except MultiPartException as error:
        too_many = "Too many" in error.message
        raise Problem(
            "too-many-images" if too_many and "files" in error.message else "malformed-multipart",
            f"{error.message}",
        ) from error
    except (FormParserError, ValueError, LookupError) as error:
        raise Problem("malformed-multipart", "the parts can't be told apart.") from error
    pictures = {} if not images else {"images": images} if several else {"image": images[0]}
    return _merged(_merged(fields, _from_texts(texts)), pictures)


def _from_texts(items: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Fields from the texts of a form or a query."""
    grouped: dict[str, list[str]] = {}
    for name, text in items:
        grouped.setdefault(name, []).append(text)
    return {name: _field(name, texts) for name, texts in grouped.items()}


def _field(name: str, texts: list[str]) -> object:
    if len(texts) == 1:
        text = texts[0]
        if name in _WORDS:
            return split_labels(text, field=name)
        if name in (*_LISTS, "defense") and text.lstrip().startswith("["):
            try:
                return orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise invalid(f"#/{name}", f"not valid JSON: {error}.") from error
        return texts if name in _LISTS else text
    if name in (*_WORDS, *_LISTS):
        return texts
    raise invalid(f"#/{name}", f"found {len(texts)} times, expected once.")


def _merged(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    for name in fields.keys() & more.keys():
        raise invalid(f"#/{name}", "given twice.", help="Give each field in one place.")
    return {**fields, **more}
