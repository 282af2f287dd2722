"""/probe/jobs on a real server: probes that nobody waits for, and the story each tells."""

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import LABELS, Running, picture, serving, wait_until

from robustclip.probing.events import AttackProgress, CleanDecided
from robustclip.reports.report import Decision
from service.answers import JobAnswer, ProbeAnswer
from service.jobs import Job, _Thinned  # pyright: ignore[reportPrivateUsage]

LONG: dict[str, Any] = {"steps": 300, "eps": "0.0001/255", "defenses": ["none"] * 16, "deadline_ms": 100_000}


def start(server: Running, **fields: Any) -> dict[str, Any]:
    response = post(server, **fields)
    assert response.status_code == 202, response.text
    assert response.headers["preference-applied"] == "respond-async"
    job = response.json()
    assert response.headers["location"] == f"/probe/jobs/{job['id']}"
    JobAnswer.model_validate(job)
    return job


def post(server: Running, **fields: Any) -> httpx.Response:
    image = {"type": "base64", "data": base64.b64encode(picture()).decode()}
    said = {"image": image, "labels": LABELS, "steps": 5, "fresh_draws": 4, "eot": 2, **fields}
    return server.client.post("/probe", json=said, headers={"Prefer": "respond-async, wait=10"})


def state(server: Running, job: dict[str, Any]) -> dict[str, Any]:
    return server.client.get(f"/probe/jobs/{job['id']}").json()


def story(
    server: Running, job: dict[str, Any], *, after: int | None = None
) -> list[tuple[int, str, dict[str, Any]]]:
    """Every event until the stream ends."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    response = server.client.get(f"/probe/jobs/{job['id']}/events", headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    told: list[tuple[int, str, dict[str, Any]]] = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            told.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return told


def test_a_job_tells_its_story_and_keeps_the_answer_that_who_waits_would_have_got(server: Running) -> None:
    asked = {"eps": "16/255", "defenses": ["none", "jpeg"], "seed": 3}
    job = start(server, **asked)
    told = story(server, job)
    assert [number for number, *_ in told] == list(range(1, len(told) + 1))
    names = [name for _, name, _ in told]
    assert names[:2] == ["started", "clean"]
    assert names[-2:] == ["run", "done"]
    assert [data["run"] for _, name, data in told if name == "run"] == [0, 1]
    assert "witness" in names
    assert all(len(json.dumps(data)) < 600 for *_, data in told)
    found = state(server, job)
    JobAnswer.model_validate(found)
    ProbeAnswer.model_validate(found["result"])
    assert (found["state"], found["progress"]) == ("done", {"done": 2, "total": 2})
    image = {"type": "base64", "data": base64.b64encode(picture()).decode()}
    waited = server.client.post(
        "/probe", json={"image": image, "labels": LABELS, "steps": 5, "fresh_draws": 4, "eot": 2, **asked}
    ).json()
    assert waited["reports"] == found["result"]["reports"]
    assert story(server, job, after=len(told) - 2) == told[-2:]


def test_a_running_job_is_cancelled_and_a_finished_one_removed(server: Running) -> None:
    job = start(server, **LONG)
    wait_until(lambda: state(server, job)["state"] == "running", seconds=30)
    assert server.client.delete(f"/probe/jobs/{job['id']}").status_code == 202
    wait_until(lambda: state(server, job)["state"] == "cancelled", seconds=30)
    assert story(server, job)[-1][1] == "cancelled"
    wait_until(lambda: server.service.probes.pending == 0, seconds=30)
    assert server.client.delete(f"/probe/jobs/{job['id']}").status_code == 204
    for answer in (
        server.client.get(f"/probe/jobs/{job['id']}"),
        server.client.delete(f"/probe/jobs/{job['id']}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown-job")


def test_what_can_t_be_probed_is_refused_before_there_is_a_job(server: Running) -> None:
    for fields, code in (
        ({"eps": 0}, "validation"),
        ({"steps": 10_000, "restarts": 100}, "probe-too-expensive"),
        ({"labels": ["cat"]}, "validation"),
    ):
        response = post(server, **fields)
        assert (response.status_code, response.json()["code"]) == (422, code)


def test_a_job_may_cost_more_than_who_waits_may_ask_for(server: Running) -> None:
    asked = {"steps": 5000, "eps": "16/255"}
    assert post(server, **asked).status_code == 202
    image = {"type": "base64", "data": base64.b64encode(picture()).decode()}
    refused = server.client.post("/probe", json={"image": image, "labels": LABELS, **asked})
    assert refused.json()["code"] == "probe-too-expensive"
    running = [job for job in server.service.jobs._jobs.values() if not job.over]  # pyright: ignore[reportPrivateUsage]
    for job in running:
        server.client.delete(f"/probe/jobs/{job.id}")
    wait_until(lambda: server.service.probes.pending == 0, seconds=30)


def test_a_job_whose_picture_is_none_fails_with_the_problem(server: Running) -> None:
    image = {"type": "base64", "data": base64.b64encode(b"no picture at all").decode()}
    response = server.client.post(
        "/probe", json={"image": image, "labels": LABELS}, headers={"Prefer": "respond-async"}
    )
    job = response.json()
    wait_until(lambda: state(server, job)["state"] == "failed", seconds=30)
    assert state(server, job)["problem"]["code"].startswith("image-")
    assert story(server, job)[-1][1:] == ("failed", {"code": state(server, job)["problem"]["code"]})


@pytest.mark.parametrize("number", ["-1", "one", "9" * 12])
def test_a_last_event_that_is_no_number_is_refused(server: Running, number: str) -> None:
    job = start(server, steps=1)
    response = server.client.get(f"/probe/jobs/{job['id']}/events", headers={"Last-Event-ID": number})
    assert (response.status_code, response.json()["code"]) == (400, "bad-header")


def test_results_expire_and_only_so_many_jobs_are_remembered(tmp_path: Path) -> None:
    with serving(tmp_path, probe={"jobs": 2, "job_result_seconds": 0.2}) as server:
        jobs = [start(server, steps=1) for _ in range(2)]
        wait_until(
            lambda: all(state(server, job)["state"] in ("done", "expired") for job in jobs), seconds=60
        )
        time.sleep(0.3)
        assert (state(server, jobs[0])["state"], state(server, jobs[0])["result"]) == ("expired", None)
        third = start(server, **LONG)
        assert server.client.get(f"/probe/jobs/{jobs[0]['id']}").status_code == 404
        fourth = start(server, **LONG)
        refused = post(server, **LONG)
        assert (refused.status_code, refused.json()["code"]) == (503, "queue-full")
        for job in (third, fourth):
            server.client.delete(f"/probe/jobs/{job['id']}")


def test_a_stream_ends_when_the_service_is_asked_to(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        job = start(server, **LONG)
        server.service.draining.set()
        server.service.probes.close()  # nothing more to tell
        assert story(server, job) is not None


def test_a_listener_that_comes_late_hears_all_and_silence_is_told() -> None:
    async def listen() -> list[str | None]:
        job = Job("prb_0", 1, "now")
        job.tell("clean", "{}")
        heard: list[str | None] = []
        async for told in job.follow(0, patience_seconds=0.01):
            heard.append(None if told is None else told.name)
            if told is None:
                job.state = "done"
                job.tell("done", "{}")
        return heard

    assert asyncio.run(listen()) == ["clean", None, "done"]


def test_progress_is_thinned_and_nothing_else_is() -> None:
    thinned = _Thinned()
    progress = AttackProgress(kind="pgd", knowledge="adaptive", margin=0.0, charged=1)
    clean = CleanDecided(clean=Decision(label="cat", probability=1.0, margin=-1.0, correct=True))
    assert [thinned.wanted(event) for event in (progress, progress, clean, clean)] == [
        True,
        False,
        True,
        True,
    ]
