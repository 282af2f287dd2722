import time
from pathlib import Path

import httpx
import pytest
from serving import LABELS, Running, picture, serving
from starlette.testclient import TestClient

from robustclip.errors import UnsupportedClip
from service.app import create_app
from service.config import ServeSettings
from service.problems import PROBLEMS


@pytest.mark.parametrize(
    "path",
    [
        "/livez",
        "/healthz",
        "/readyz",
        "/startupz",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/info",
        "/prompt-sets",
    ],
)
def test_a_running_service_answers(server: Running, path: str) -> None:
    assert server.client.get(path).status_code == 200


def test_while_models_load_health_answers_and_work_is_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.startup import Service

    monkeypatch.setattr(Service, "start", lambda self: time.sleep(0.3))  # a long start, whatever the machine
    app = create_app(ServeSettings(store={"path": tmp_path}))
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").json()["checks"]["started"] is False
        assert client.get("/startupz").status_code == 503
        response = client.post("/classify", files={"image": picture()}, data={"labels": LABELS})
        assert (response.status_code, response.json()["code"]) == (503, "starting")
        assert int(response.headers["retry-after"]) > 0


def test_a_start_that_fails_is_dead_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedClip), serving(tmp_path, clip={"arch": "no-such-clip"}):
        pass


def test_a_failed_start_answers_503(tmp_path: Path) -> None:
    app = create_app(ServeSettings(clip={"arch": "no-such-clip"}, store={"path": tmp_path}))
    with TestClient(app, base_url="http://localhost") as client:
        deadline = time.monotonic() + 20
        while client.get("/livez").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get("/livez").status_code == 503
        assert client.get("/readyz").json()["checks"]["start_did_not_fail"] is False


def test_info_names_defenses_with_their_status_and_the_limits(server: Running) -> None:
    info = server.client.get("/info").json()
    assert {each["kind"]: each["status"] for each in info["defenses"]}["jpeg"] == "broken-adaptively"
    assert set(info["attacks"]) >= {"pgd", "fgsm"}
    assert info["limits"]["labels"] == 2000
    assert info["terms"] is None  # drawn from a seed: nobody's data


def test_every_problem_can_be_looked_up(server: Running) -> None:
    for code in PROBLEMS:
        assert server.client.get(f"/problems/{code}").json()["status"] == PROBLEMS[code].status
    assert server.client.get("/problems/none").status_code == 404


def test_the_documentation_needs_no_other_host(server: Running) -> None:
    page = server.client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/assets/{asset}" in page
        assert server.client.get(f"/docs/assets/{asset}").status_code == 200


def test_the_metrics_that_dashboards_name_are_there(server: Running) -> None:
    server.client.post("/classify", files={"image": picture()}, data={"labels": LABELS})
    server.client.post("/classify", files={"image": b"no"}, data={"labels": LABELS})
    text = server.client.get("/metrics").text
    for name in (
        'http_request_duration_seconds_count{method="POST",route="/classify",status="200"}',
        'stage_duration_seconds_count{stage="infer"}',
        "batch_images_count",
        'images_total{route="/classify"}',
        'predictions_total{defense="none",prompt_set="handcrafted@',
        "inflight_requests",
        "queue_images 0.0",
        'rejected_total{reason="image-format-refused"}',
        "label_cache_hits_total",
        "label_cache_misses_total",
        "label_cache_bytes",
        "text_forwards_total",
        'prompt_set_info{modalities="none",name="handcrafted",version="',
        'prompt_set_loads_total{result="ok"}',
        'prompt_set_activations_total{result="ok"}',
        "snapshot_generation",
        "probe_duration_seconds_count",
        'device_lock_wait_seconds_count{who="classify"}',
        "event_loop_lag_seconds_count",
        'precision_info{backend="torch",device="cpu",precision="fp32"} 1.0',
    ):
        assert f"robustclip_{name}" in text, name


def test_metrics_name_routes_by_template(server: Running) -> None:
    server.client.get("/prompt-sets/handcrafted")
    server.client.get("/some/unheard-of/address")
    text = server.client.get("/metrics").text
    assert 'route="/prompt-sets/{name}"' in text
    assert "unheard-of" not in text


def test_an_inbound_request_id_is_kept_if_it_is_one(server: Running) -> None:
    def identified(name: str) -> str:
        return server.client.get("/livez", headers={"X-Request-ID": name}).headers["x-request-id"]

    assert identified("trace-1.2_3") == "trace-1.2_3"
    assert identified("a b").startswith("req_")
    assert identified("x" * 65).startswith("req_")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "10.0.0.1:80", "[::2]:80", "::::"],
)
def test_a_foreign_host_is_refused_on_loopback(server: Running, host: str) -> None:
    response = server.client.get("/livez", headers={"Host": host})
    assert (response.status_code, response.json()["code"]) == (403, "host-refused")


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:9", "[::1]:9", "[::1]"])
def test_loopback_names_are_served_on_any_port(server: Running, host: str) -> None:
    assert server.client.get("/livez", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_another_site_s_page_may_read_nothing_by_post(server: Running, headers: dict[str, str]) -> None:
    response = server.client.post("/prompt-sets/handcrafted/rollback", headers=headers)
    assert (response.status_code, response.json()["code"]) == (403, "origin-refused")


def test_its_own_page_may_post(server: Running) -> None:
    response = server.client.post(
        "/classify", files={"image": picture()}, data={"labels": LABELS}, headers={"Origin": server.url}
    )
    assert response.status_code == 200


def test_a_bind_that_others_reach_checks_no_host(tmp_path: Path) -> None:
    app = create_app(
        ServeSettings(
            server={"host": "0.0.0.0", "insecure_no_auth": True},
            clip={"arch": "tiny"},
            store={"path": tmp_path},
        )
    )
    with TestClient(app, base_url="http://service:8000") as client:
        assert client.get("/livez").status_code == 200


def test_an_unforeseen_failure_is_a_problem_without_its_text(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(server.service.engine, "pixels", fail)
    response: httpx.Response = server.client.post(
        "/classify", files={"image": picture()}, data={"labels": LABELS}
    )
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "secret" not in response.text
