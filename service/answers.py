"""What answers look like: the models describe them for OpenAPI and the tests.

Answers themselves are written by orjson without another validation: by the routes, and here where several
routes share a part.
"""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from prompts_store.shelf import StoredState
from robustclip.certificates.vote import Ballot
from robustclip.defenses import AnyDefense
from robustclip.models.clip import Clip
from robustclip.models.scoring import Scoring, logit_bias
from robustclip.reports.report import ProbeReport, VerdictValue
from robustclip.types import ImageEncoder
from service.jobs import Job, JobState
from service.problems import ErrorItem, ProblemBody

SERVICE = version("robustclip")


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Prediction(_Answer):
    label: str
    score: float = Field(
        description="softmax over the labels, or sigmoid of the label's own logit; under smoothing the share "
        "of the votes"
    )
    logit: float = Field(description="under smoothing its mean over the votes")


class ImageFacts(_Answer):
    width: int
    height: int
    format: str
    sha256: str


class ImageProblem(_Answer):
    code: str
    detail: str
    errors: list[ErrorItem]
    help: str | None


class ImageResult(_Answer):
    """Predictions of one image, or its error. No predictions and no margin where a vote proves nothing."""

    index: int
    predictions: list[Prediction] | None = None
    none_of_these: bool | None = Field(
        default=None,
        description="under `sigmoid`: the answer is that no label fits, since each has a score below 1/2 "
        "(under smoothing: since most copies voted for that)",
    )
    margin: float | None = Field(
        default=None,
        description="best score minus the second; under `sigmoid` that no label fits has a score, too: 1 "
        "minus the best of a label",
    )
    smoothing: Ballot | None = Field(
        default=None, description="how the noisy copies voted, where the defense begins with smoothing"
    )
    image: ImageFacts | None = None
    error: ImageProblem | None = None


class ModelFacts(_Answer):
    arch: str
    pretrained: str
    fingerprint: str
    backend: str
    precision: str
    image_size: int
    logit_bias: float | None = Field(description="of a CLIP that was trained with a sigmoid")


class SetFacts(_Answer):
    name: str
    version: str
    objective: str
    modalities: list[str]


class ClassifyAnswer(_Answer):
    """The predictions, and everything that is needed to repeat them."""

    id: str
    object: Literal["classification"]
    created: int
    results: list[ImageResult]
    errors: int = Field(description="how many images failed")
    model: ModelFacts
    prompt_set: SetFacts
    defense: list[dict[str, Any]]
    scoring: Scoring
    seed: int | None
    service: str
    timing_ms: dict[str, float]


class NotProbed(_Answer):
    """What was asked for and not begun in time."""

    prompt_set: str
    defense: list[dict[str, Any]]


class ProbeAnswer(_Answer):
    """One report for every prompt set and defense; `verdict` is the worst of them, and inconclusive at best
    if any is missing.
    """

    id: str
    object: Literal["probe"]
    reports: list[ProbeReport]
    missing: list[NotProbed] = Field(description="what there was no time for")
    verdict: VerdictValue
    model: ModelFacts
    scoring: Scoring
    seed: int
    timing_ms: dict[str, float]


class JobProgress(_Answer):
    done: int = Field(description="reports that are ready")
    total: int


class JobAnswer(_Answer):
    """A probe that nobody waits for; `expired`: its result was kept as long as the operator keeps results."""

    id: str
    object: Literal["probe.job"]
    state: JobState
    progress: JobProgress
    created: str
    finished: str | None
    result: ProbeAnswer | None
    problem: ProblemBody | None


class SetState(_Answer):
    """A prompt set as it is served; `reason` and `message` say why a version that was to be served is not."""

    name: str
    version: str | None
    state: Literal["active", "refused"]
    modalities: list[str]
    templates: list[str]
    objective: str | None
    dataset: str | None
    shots: int | None
    results: list[dict[str, Any]] = Field(description="accuracies with the attack that measured each")
    note: str
    since: str | None
    default: bool
    refused_version: str | None
    reason: str | None
    message: str | None


class SetList(_Answer):
    object: Literal["list"]
    generation: int
    data: list[SetState]


class VersionState(_Answer):
    version: str
    state: StoredState
    reason: str | None
    message: str | None
    created_at: str | None
    bytes: int


class VersionList(_Answer):
    object: Literal["list"]
    name: str
    data: list[VersionState]


def json_response(
    content: Mapping[str, Any], *, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    return Response(orjson.dumps(content), status, headers=dict(headers or {}), media_type="application/json")


def model_facts(clip: Clip, encoder: ImageEncoder) -> dict[str, Any]:
    return {
        "arch": clip.arch,
        "pretrained": clip.pretrained,
        "fingerprint": clip.fingerprint,
        "backend": encoder.backend,
        "precision": "fp32",
        "image_size": clip.image_size,
        "logit_bias": None if (bias := logit_bias(clip)) is None else float(bias),
    }


def preprocessing_facts(clip: Clip) -> dict[str, Any]:
    """How a picture becomes pixels, and pixels the input of the image tower."""
    return {**asdict(clip.preprocessing), "mean": clip.mean.tolist(), "std": clip.std.tolist()}


def capability_facts(clip: Clip) -> dict[str, str | None]:
    """By capability the reason why the CLIP lacks it, null where it has it."""
    return {name: reason or None for name, reason in clip.capabilities.reasons.items()}


def defense_facts(chain: tuple[AnyDefense, ...]) -> list[dict[str, Any]]:
    return [part.model_dump(mode="json") for part in chain]


def job_answer(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "probe.job",
        "state": job.state,
        "progress": {"done": job.runs_done, "total": job.runs},
        "created": job.created,
        "finished": job.finished,
        "result": job.result,
        "problem": job.problem,
    }
