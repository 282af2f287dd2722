"""POST /classify: which of these labels does the picture show?"""

import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from robustclip.images import ImageInfo
from service.answers import SERVICE, ClassifyAnswer, defense_facts, json_response, model_facts
from service.bodies import read_request
from service.disconnect import while_connected
from service.docs import OF_PICTURES, body_of, problems, query_of
from service.middleware import context_of
from service.problems import Problem
from service.ranking import Ranked
from service.routes.serving import Serving
from service.schemas import ClassifyRequest

router = APIRouter(tags=["classify"])
_QUERY = ("labels", "prompt_set", "defense", "scoring", "top_k", "temperature", "seed", "deadline_ms")


@router.post(
    "/classify",
    summary="Choose among labels",
    responses={200: {"model": ClassifyAnswer}} | problems(*OF_PICTURES, "too-many-images"),
    openapi_extra=body_of(ClassifyRequest) | {"parameters": query_of(ClassifyRequest, *_QUERY)},
)
async def classify(request: Request, service: Serving) -> Response:
    """JSON with base64, form data, or the image itself as the body with options in the query. With several
    images a bad one fails alone.
    """
    engine, context = service.engine, context_of(request)
    with context.timing.stage("read"):
        asked = await read_request(request, ClassifyRequest, service.settings.limits)
    service.metrics.images.labels("/classify").inc(len(asked.pictures()))
    classified = await while_connected(request, engine.classify(asked, context.timing))
    failed = [result for result in classified.results if isinstance(result, Problem)]
    if len(failed) == len(classified.results):
        errors = [item for problem in failed for item in problem.errors]
        raise Problem(failed[0].code, failed[0].detail, errors, failed[0].help)
    manifest = classified.loaded.prompt_set.manifest
    answer = {
        "id": context.request_id,
        "object": "classification",
        "created": int(time.time()),
        "results": [_result(index, result) for index, result in enumerate(classified.results)],
        "errors": len(failed),
        "model": model_facts(engine.clip, engine.encoder),
        "prompt_set": {
            "name": manifest.name,
            "version": classified.loaded.ref.version,
            "objective": manifest.objective["kind"],
            "modalities": list(classified.loaded.prompts.modalities),
        },
        "defense": defense_facts(classified.chain),
        "scoring": classified.scoring,
        "seed": classified.seed,
        "service": SERVICE,
        "timing_ms": context.timing.with_total(),
    }
    return json_response(answer, headers={"X-Prompt-Set": str(classified.loaded.ref)})


def _result(index: int, result: tuple[Ranked, ImageInfo] | Problem) -> dict[str, Any]:
    if isinstance(result, Problem):
        errors = [item.model_dump() for item in result.errors]
        return {
            "index": index,
            "error": {"code": result.code, "detail": result.detail, "errors": errors, "help": result.help},
        }
    ranked, info = result
    return {
        "index": index,
        "predictions": [
            {"label": label, "score": score, "logit": logit} for label, score, logit in ranked.predictions
        ],
        **({} if ranked.none_of_these is None else {"none_of_these": ranked.none_of_these}),
        "margin": ranked.margin,
        **({} if ranked.ballot is None else {"smoothing": ranked.ballot.model_dump()}),
        "image": {"width": info.width, "height": info.height, "format": info.format, "sha256": info.sha256},
    }
