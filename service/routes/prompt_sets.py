"""/prompt-sets: what is served, which versions there are, and serving another one.

There is no upload: sets come from the store alone.
"""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi import Path as PathParameter
from starlette.requests import Request
from starlette.responses import Response

from prompts_store.manifest import NAME_PATTERN, Ref
from prompts_store.shelf import StoredVersion
from service.answers import SetList, SetState, VersionList, json_response
from service.bodies import read_json
from service.docs import OF_BODIES, body_of, problems
from service.loaded import LoadedSet
from service.routes.serving import Serving
from service.schemas import ActivateRequest
from service.startup import Service

router = APIRouter(prefix="/prompt-sets", tags=["prompt sets"])
NameInPath = Annotated[
    str, PathParameter(pattern=NAME_PATTERN, description="a prompt set's name", examples=["handcrafted"])
]
IfMatch = Annotated[str | None, Header(description="the ETag of GET /prompt-sets/{name}; 412 if it is stale")]
_READING = problems("host-refused", "unknown-prompt-set", "validation", "prompt-set-invalid", "starting")
_MOVING = problems(
    *OF_BODIES,
    "nothing-to-roll-back",
    "store-read-only",
    "store-busy",
    "store-full",
    "gate-failed",
    "report-refused",
    "etag-mismatch",
)


@router.get("", summary="All prompt sets", responses={200: {"model": SetList}} | problems("starting"))
async def list_sets(service: Serving) -> Response:
    snapshot = service.engine.sets.snapshot
    names = sorted(snapshot.active.keys() | snapshot.refused.keys())
    data = [_set(service, name) for name in names]
    return json_response({"object": "list", "generation": snapshot.generation, "data": data})


@router.get("/{name}", summary="One prompt set", responses={200: {"model": SetState}} | _READING)
async def one_set(service: Serving, name: NameInPath) -> Response:
    return _state(service, name)


@router.get(
    "/{name}/versions",
    summary="Its versions, newest first",
    responses={200: {"model": VersionList}} | _READING,
)
async def versions(service: Serving, name: NameInPath) -> Response:
    engine = service.engine
    stored = await engine.blocking(engine.sets.store.versions, name, engine.clip.fingerprint)
    return json_response({"object": "list", "name": name, "data": [_version(one) for one in stored]})


@router.post(
    "/{name}/activate",
    summary="Serve a version",
    responses={200: {"model": SetState}} | _MOVING,
    openapi_extra=body_of(ActivateRequest, forms=False),
)
async def activate(
    request: Request, service: Serving, name: NameInPath, if_match: IfMatch = None
) -> Response:
    """Reads, verifies, tries and warms the version, and shows it the stored witnesses; only then the store's
    pointer moves and it is served.
    """
    engine = service.engine
    asked = await read_json(request, ActivateRequest, engine.settings.limits)
    await engine.blocking(
        partial(engine.sets.activate, Ref(name, asked.version), if_match=if_match, force=asked.force)
    )
    return _state(service, name)


@router.post(
    "/{name}/rollback",
    summary="Serve the version that was active before",
    responses={200: {"model": SetState}} | _MOVING,
)
async def rollback(service: Serving, name: NameInPath, if_match: IfMatch = None) -> Response:
    engine = service.engine
    await engine.blocking(partial(engine.sets.rollback, name, if_match=if_match))
    return _state(service, name)


def _state(service: Service, name: str) -> Response:
    snapshot = service.engine.sets.snapshot
    if name not in snapshot.refused:
        snapshot.named(name)
    headers = {"ETag": snapshot.active[name].etag} if name in snapshot.active else {}
    return json_response(_set(service, name), headers=headers)


def _set(service: Service, name: str) -> dict[str, Any]:
    """One set by name: the served version, and the one that was refused in its place."""
    snapshot = service.engine.sets.snapshot
    refusal = snapshot.refused.get(name)
    return {
        "name": name,
        "default": name == service.settings.store.default_set,
        **_served(snapshot.active.get(name)),
        "refused_version": refusal.ref.version if refusal else None,
        "reason": refusal.reason if refusal else None,
        "message": refusal.message if refusal else None,
    }


def _served(loaded: LoadedSet | None) -> dict[str, Any]:
    manifest = None if loaded is None else loaded.prompt_set.manifest
    return {
        "version": loaded.ref.version if loaded else None,
        "state": "active" if loaded else "refused",
        "modalities": list(loaded.prompts.modalities) if loaded else [],
        "templates": list(manifest.templates) if manifest else [],
        "objective": manifest.objective["kind"] if manifest else None,
        "dataset": manifest.dataset if manifest else None,
        "shots": manifest.shots if manifest else None,
        "results": [result.model_dump(mode="json") for result in manifest.results] if manifest else [],
        "note": manifest.note if manifest else "",
        "since": loaded.since.isoformat() if loaded else None,
    }


def _version(stored: StoredVersion) -> dict[str, Any]:
    return {
        "version": stored.ref.version,
        "state": stored.state,
        "reason": stored.reason,
        "message": stored.message,
        "created_at": stored.created_at.isoformat() if stored.created_at else None,
        "bytes": stored.bytes,
    }
