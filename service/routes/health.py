"""Health, readiness and facts of the service, for orchestrators, monitoring and people."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from robustclip.attacks import ATTACKS
from robustclip.backbones import terms_of
from robustclip.defenses import DEFENSES
from robustclip.models.scoring import trained_with
from service.answers import (
    SERVICE,
    capability_facts,
    defense_facts,
    json_response,
    model_facts,
    preprocessing_facts,
)
from service.docs import problems
from service.problems import PROBLEMS, Problem
from service.routes.serving import Serving
from service.startup import Service

router = APIRouter(tags=["health"])


@router.get("/livez", summary="Whether the process should go on living")
@router.get("/healthz", include_in_schema=False)
async def livez(service: Serving) -> Response:
    alive = service.failure is None and (service.phase != "ready" or service.engine.healthy)
    return json_response({"alive": alive}, status=200 if alive else 503)


@router.get(
    "/startupz",
    summary="Whether the start is over, and what it is doing",
    responses={503: {"description": "still starting"}},
)
async def startupz(service: Serving) -> Response:
    return json_response({"phase": service.phase}, status=200 if service.phase == "ready" else 503)


@router.get(
    "/readyz",
    summary="Whether requests can be answered",
    responses={503: {"description": "not ready; `checks` says why"}},
)
async def readyz(service: Serving) -> Response:
    checks = _checks(service)
    return json_response(
        {"ready": all(checks.values()), "phase": service.phase, "checks": checks},
        status=200 if all(checks.values()) else 503,
    )


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(service: Serving) -> Response:
    content, kind = service.metrics.page()
    return Response(content, media_type=kind)


@router.get("/info", summary="Backbone, limits, defenses with their cost and status, attacks")
async def info(service: Serving) -> Response:
    engine, settings = service.engine, service.settings
    return json_response(
        {
            "service": SERVICE,
            "auth": "off",
            "model": model_facts(engine.clip, engine.encoder),
            "terms": terms_of(engine.clip.arch),
            "preprocessing": preprocessing_facts(engine.clip),
            "capabilities": capability_facts(engine.clip),
            "generation": engine.sets.snapshot.generation,
            "default_scoring": trained_with(engine.clip),
            "default_prompt_set": settings.store.default_set,
            "default_defense": defense_facts(engine.default_chain),
            "limits": settings.limits.model_dump(),
            "probe": settings.probe.model_dump(),
            "defenses": [_defense(defense) for defense in DEFENSES],
            "attacks": [attack.model_fields["kind"].default for attack in ATTACKS],
        }
    )


@router.get("/problems/{code}", summary="What a problem's code means", responses=problems("unknown-route"))
async def problem(code: str) -> Response:
    if code not in PROBLEMS:
        raise Problem("unknown-route", "there is no such problem.")
    kind = PROBLEMS[code]
    return json_response({"code": code, "status": kind.status, "title": kind.title, "help": kind.help})


def _defense(defense: Any) -> dict[str, Any]:
    return {
        "kind": defense.model_fields["kind"].default,
        "status": defense.status,
        "cost": defense.cost,
        "passes": defense().toll.passes._asdict(),
        "strength": defense.strength,
        "stage": defense().stage,
        "gradient": defense().gradient,
        "randomized": defense().randomized,
        "schema": defense.model_json_schema(),
    }


def _checks(service: Service) -> dict[str, bool]:
    started = service.phase == "ready"
    return {
        "started": started,
        "start_did_not_fail": service.failure is None,
        "engine_runs": started and service.engine.healthy,
        "default_prompt_set_active": started
        and service.settings.store.default_set in service.engine.sets.snapshot.active,
    }
