"""POST /probe: does the decision survive an attack that knows the whole deployed chain?"""

import functools
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from robustclip.models.scoring import scoring_for
from service.answers import (
    JobAnswer,
    ProbeAnswer,
    defense_facts,
    job_answer,
    json_response,
    model_facts,
)
from service.bodies import read_request
from service.disconnect import while_connected
from service.docs import OF_PICTURES, body_of, problems, query_of
from service.engine import Engine
from service.middleware import context_of
from service.probing import Probed
from service.routes.serving import Serving
from service.schemas import ProbeRequest

router = APIRouter(tags=["probe"])
_QUERY = (
    *(
        "labels",
        "scoring",
        "true_label",
        "target_label",
        "norm",
        "eps",
        "preset",
        "steps",
        "restarts",
        "minimal",
    ),
    *("loss", "seed", "deadline_ms"),
)
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "enum": ["respond-async"]},
    "description": "don't wait: answer 202 with a job",
}


@router.post(
    "/probe",
    summary="Attack a decision",
    responses={
        200: {"model": ProbeAnswer},
        202: {"model": JobAnswer, "description": "started as a job; Location says where to look"},
    }
    | problems(*OF_PICTURES, "probe-too-expensive", "probe-unavailable"),
    openapi_extra=body_of(ProbeRequest) | {"parameters": [*query_of(ProbeRequest, *_QUERY), _PREFER]},
)
async def probe(request: Request, service: Serving) -> Response:
    """PGD or the strong attack against the served classifier, through each defense. `broken` comes with a
    picture that shows it.

    Nothing is ever called robust. When the time is over, the reports hold what was found so far, and say so.
    """
    engine, context = service.engine, context_of(request)
    with context.timing.stage("read"):
        asked = await read_request(
            request, ProbeRequest, service.settings.limits, labels=service.settings.probe.labels
        )
    service.metrics.images.labels("/probe").inc()
    if "respond-async" in {
        part.split(";")[0].strip().lower() for part in request.headers.get("prefer", "").split(",")
    }:
        admitted = await service.probes.admit(asked, job=True)
        job = service.jobs.start(admitted, functools.partial(_answer, engine, asked))
        headers = {"Location": f"/probe/jobs/{job.id}", "Preference-Applied": "respond-async"}
        return json_response(job_answer(job), headers=headers, status=202)
    probed = await while_connected(request, service.probes.run(asked, context.timing))
    answer = _answer(engine, asked, probed, context.request_id, context.timing.with_total())
    sets = dict.fromkeys(report.victim.prompt_set for report in probed.reports)
    return json_response(answer, headers={"X-Prompt-Set": ", ".join(sets)})


def _answer(
    engine: Engine, asked: ProbeRequest, probed: Probed, id: str, timing_ms: Mapping[str, float]
) -> Mapping[str, Any]:
    return {
        "id": id,
        "object": "probe",
        "reports": [report.model_dump(mode="json", by_alias=True) for report in probed.reports],
        "missing": [
            {"prompt_set": prompt_set, "defense": defense_facts(chain)}
            for prompt_set, chain in probed.missing
        ],
        "verdict": probed.verdict,
        "model": model_facts(engine.clip, engine.encoder),
        "scoring": scoring_for(engine.clip, asked.scoring),
        "seed": asked.seed,
        "timing_ms": timing_ms,
    }
