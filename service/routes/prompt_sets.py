"""/prompt-sets: what is served, which versions there are, and moving between them. Sets enter through the
store alone; there is no upload.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import Response

from prompts_store.manifest import NAME_PATTERN, Ref
from service.answers import SetList, SetState, VersionList, json_response, set_state, version_state
from service.bodies import read_json
from service.docs import body_of, problems
from service.engine import Engine
from service.loaded import LoadedSet
from service.schemas import ActivateRequest
from service.startup import Service

router = APIRouter(prefix="/prompt-sets", tags=["prompt sets"])
NameInPath = Annotated[
    str, PathParameter(pattern=NAME_PATTERN, description="a prompt set's name", examples=["handcrafted"])
]
IfMatch = Annotated[str | None, Header(description="the ETag of GET /prompt-sets/{name}; 412 if it is stale")]
_READING = problems("host-refused", "unknown-prompt-set", "validation", "prompt-set-invalid", "starting")
_MOVING = problems(
    *(
        "malformed-json",
        "host-refused",
        "origin-refused",
        "unknown-prompt-set",
        "unknown-version",
        "body-too-slow",
        "nothing-to-roll-back",
    ),
    *(
        "store-read-only",
        "gate-failed",
        "report-refused",
        "etag-mismatch",
        "body-too-large",
        "unsupported-media-type",
        "validation",
        "prompt-set-invalid",
        "starting",
    ),
)


@router.get("", summary="All prompt sets", responses={200: {"model": SetList}} | problems("starting"))
async def list_sets(request: Request) -> Response:
    service: Service = request.app.state.service
    snapshot = service.engine.sets.snapshot
    names = sorted(snapshot.active.keys() | snapshot.refused.keys())
    data = [set_state(name, snapshot, default=service.settings.store.default_set) for name in names]
    return json_response({"object": "list", "generation": snapshot.generation, "data": data})


@router.get("/{name}", summary="One prompt set", responses={200: {"model": SetState}} | _READING)
async def one_set(request: Request, name: NameInPath) -> Response:
    service: Service = request.app.state.service
    return _state(service, name)


@router.get(
    "/{name}/versions",
    summary="Its versions, newest first",
    responses={200: {"model": VersionList}} | _READING,
)
async def versions(request: Request, name: NameInPath) -> Response:
    engine = _engine(request)
    stored = await engine.blocking(engine.sets.store.versions, name, engine.clip.fingerprint)
    return json_response({"object": "list", "name": name, "data": [version_state(one) for one in stored]})


@router.post(
    "/{name}/activate",
    summary="Serve a version",
    responses={200: {"model": SetState}} | _MOVING,
    openapi_extra=body_of(ActivateRequest, forms=False),
)
async def activate(request: Request, name: NameInPath, if_match: IfMatch = None) -> Response:
    """Reads, verifies, tries and warms the version, and shows it the stored witnesses; only then the store's
    pointer moves and it is served.
    """
    engine = _engine(request)
    asked = await read_json(request, ActivateRequest, engine.settings.limits)

    def move() -> LoadedSet:
        return engine.sets.activate(Ref(name, asked.version), if_match=if_match, force=asked.force)

    await engine.blocking(move)
    return _state(request.app.state.service, name)


@router.post(
    "/{name}/rollback",
    summary="Serve the version that was active before",
    responses={200: {"model": SetState}} | _MOVING,
)
async def rollback(request: Request, name: NameInPath, if_match: IfMatch = None) -> Response:
    engine = _engine(request)

    def move() -> LoadedSet:
        return engine.sets.rollback(name, if_match=if_match)

    await engine.blocking(move)
    return _state(request.app.state.service, name)


def _engine(request: Request) -> Engine:
    service: Service = request.app.state.service
    return service.engine


def _state(service: Service, name: str) -> Response:
    snapshot = service.engine.sets.snapshot
    state: dict[str, Any] = set_state(name, snapshot, default=service.settings.store.default_set)
    if name not in snapshot.active and name not in snapshot.refused:
        snapshot.named(name)
    headers = {"ETag": snapshot.active[name].etag} if name in snapshot.active else {}
    return json_response(state, headers=headers)
