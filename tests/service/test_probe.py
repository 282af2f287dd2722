"""POST /probe on a real server. What a probe finds is the library's matter; here: that it attacks what is
served, and behaves.
"""

import base64
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prompt_sets import learned_set
from serving import LABELS, Running, picture, serving, wait_until

from robustclip.models.clip import Clip
from robustclip.sanity import checks, strength
from service.answers import ProbeAnswer
from service.config import LimitSettings, ProbeSettings
from service.probing import patience_seconds
from service.schemas import ProbeRequest, parse

LONG: dict[str, Any] = {"steps": 300, "defenses": ["none"] * 16}


def ask(server: Running, **fields: Any) -> httpx.Response:
    image = {"type": "base64", "data": base64.b64encode(picture()).decode()}
    said = {"image": image, "labels": LABELS, "steps": 5, "fresh_draws": 4, "eot": 2, **fields}
    return server.client.post(
        "/probe", json={name: value for name, value in said.items() if value is not None}, timeout=150
    )


def report(server: Running, **fields: Any) -> dict[str, Any]:
    response = ask(server, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_witness_breaks_the_decision_of_a_fresh_classification(server: Running) -> None:
    body = report(server, eps="16/255", steps=10, **{"return": ["adversarial", "curve", "heat"]})
    ProbeAnswer.model_validate(body)
    assert body["verdict"] == "broken"
    found = body["reports"][0]
    record = next(record for record in found["attacks"] if record["success_8bit"])
    clean = found["input"]["clean"]["label"]
    png = base64.b64decode(record["adversarial_png"])
    served = server.client.post("/classify", files={"image": png}, data={"labels": LABELS}).json()
    assert served["results"][0]["predictions"][0]["label"] == record["label"] != clean
    assert record["linf_levels"] <= 16
    assert record["trace"]
    assert record["heat"]


def test_the_clean_decision_of_a_probe_is_the_one_that_is_served(server: Running) -> None:
    for seed in range(5):
        image = picture(seed)
        served = server.client.post(
            "/classify", files={"image": image}, data={"labels": LABELS, "defense": "jpeg"}
        ).json()
        asked = {"labels": LABELS, "defenses": "jpeg", "steps": "1", "modes": "static"}
        probed = server.client.post("/probe", files={"image": image}, data=asked).json()
        clean, winner = probed["reports"][0]["input"]["clean"], served["results"][0]["predictions"][0]
        assert clean["label"] == winner["label"]
        assert clean["probability"] == pytest.approx(winner["score"], abs=1e-3)


def test_the_same_seed_gives_the_same_report(server: Running) -> None:
    asked = {"defenses": ["resize_pad"], "seed": 3}
    first, second = report(server, **asked), report(server, **asked)
    assert first["reports"] == second["reports"]
    assert report(server, **{**asked, "seed": 4})["reports"] != first["reports"]


def test_every_prompt_set_and_defense_gets_its_report_and_the_worst_verdict_stands_above(
    server: Running, tiny: Clip
) -> None:
    ref = server.store.publish(learned_set(tiny, name="probed"))
    body = report(
        server,
        prompt_sets=["handcrafted", str(ref)],
        defenses=["none", "default", [{"kind": "jpeg", "quality": 50}]],
    )
    named = [
        (each["victim"]["prompt_set"].partition("@")[0], [part["kind"] for part in each["victim"]["defense"]])
        for each in body["reports"]
    ]
    assert named == [(name, defense) for name in ("handcrafted", "probed") for defense in ([], [], ["jpeg"])]
    verdicts = {each["verdict"]["value"] for each in body["reports"]}
    assert body["verdict"] == next(
        value for value in ("broken", "inconclusive", "not-broken-within-budget") if value in verdicts
    )
    static_and_adaptive = [record["knowledge"] for record in body["reports"][2]["attacks"]]
    assert static_and_adaptive == ["static", "adaptive"]


@pytest.mark.parametrize(
    ("fields", "status", "code", "pointer"),
    [
        ({"eps": "nan"}, 422, "validation", "#/eps"),
        ({"eps": -1}, 422, "validation", "#/eps"),
        ({"eps": 0}, 422, "validation", "#/eps"),
        ({"eps": 2}, 422, "validation", "#/eps"),
        (
            {"attacks": [{"kind": "apgd", "ball": {"kind": "linf", "radius": 0}}]},
            422,
            "validation",
            "#/attacks/0/ball/radius",
        ),
        (
            {"attacks": [{"kind": "magic", "ball": {"kind": "linf", "radius": 0}}]},
            422,
            "validation",
            "#/attacks/0",
        ),
        (
            {"attacks": [{"kind": "pgd", "ball": {"kind": "linf", "radius": "1/255"}, "steps": 10_001}]},
            422,
            "validation",
            "#/attacks/0/steps",
        ),
        ({"preset": "magic", "steps": None}, 422, "validation", "#/preset"),
        ({"preset": "quick"}, 422, "validation", "#/steps"),
        (
            {"attacks": [{"kind": "pgd", "ball": {"kind": "linf", "radius": "1/255"}}], "preset": "quick"},
            422,
            "validation",
            "#/preset",
        ),
        ({"modes": ["transfer"]}, 422, "validation", "#/modes"),
        ({"modes": ["oblivious"], "minimal": True}, 422, "validation", "#/minimal"),
        ({"eps": "65/255"}, 422, "validation", "#/eps"),
        ({"norm": "l2"}, 422, "validation", "#/eps"),
        ({"steps": 0}, 422, "validation", "#/steps"),
        ({"steps": 10_000}, 422, "probe-too-expensive", "#/steps"),
        ({"true_label": "zebra"}, 422, "validation", "#/true_label"),
        ({"true_label": "cat", "target_label": "cat"}, 422, "validation", "#/target_label"),
        ({"prompt_sets": ["nowhere"]}, 404, "unknown-prompt-set", "#/prompt_sets/0"),
        ({"prompt_sets": ["../../etc/passwd"]}, 422, "validation", "#/prompt_sets/0"),
        ({"defenses": [[{"kind": "prayer"}]]}, 422, "validation", "#/defenses/0/0"),
        ({"defenses": ["jpeg:1000"]}, 422, "validation", "#/defenses/0/0/quality"),
        ({"defenses": [[]] * 17}, 422, "probe-too-expensive", "#/prompt_sets"),
        ({"labels": [f"label {index}" for index in range(257)]}, 422, "too-many-labels", "#/labels"),
        ({"labels": ["cat"]}, 422, "validation", "#/labels"),
        ({"modes": ["static", "static"]}, 422, "validation", "#/modes"),
        ({"deadline_ms": 10**9}, 422, "validation", "#/deadline_ms"),
        (
            {"attacks": [{"kind": "pgd", "ball": {"kind": "linf", "radius": "1/255"}}], "eps": "1/255"},
            422,
            "validation",
            "#/eps",
        ),
        (
            {"attacks": [{"kind": "pgd", "ball": {"kind": "linf", "radius": 1}}]},
            422,
            "validation",
            "#/attacks/0/ball/radius",
        ),
    ],
)
def test_what_can_t_be_probed_is_refused_by_name(
    server: Running, fields: dict[str, Any], status: int, code: str, pointer: str
) -> None:
    if "attacks" in fields:
        image = {"type": "base64", "data": base64.b64encode(picture()).decode()}
        response = server.client.post("/probe", json={"image": image, "labels": LABELS, **fields})
    else:
        response = ask(server, **fields)
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    assert body["errors"][0]["pointer"] == pointer


def test_a_probe_that_takes_too_long_says_what_it_found_and_what_it_did_not_try(server: Running) -> None:
    body = report(server, **LONG, eps="0.0001/255", deadline_ms=6000)
    ProbeAnswer.model_validate(body)
    assert body["verdict"] == "inconclusive"
    assert len(body["reports"]) + len(body["missing"]) == 16
    cut = body["reports"][-1]
    assert (cut["verdict"]["reason"], cut["cut"]) == ("deadline", "deadline")


def test_a_witness_found_in_time_is_an_answer(server: Running) -> None:
    body = report(server, **LONG, eps="16/255", deadline_ms=6000)
    assert body["verdict"] == "broken"
    assert body["reports"][0]["attacks"][0]["success_8bit"]


def test_the_strong_attack_is_a_preset_and_prompt_sets_lend_it_their_gradients(
    server: Running, tiny: Clip
) -> None:
    ref = server.store.publish(learned_set(tiny, name="lender"))
    asked = {
        "preset": "quick",
        "steps": None,
        "eps": "0.0001/255",
        "prompt_sets": ["handcrafted", str(ref)],
        "defenses": ["jpeg"],
    }
    body = report(server, **asked, modes=["oblivious", "transfer", "static", "adaptive"])
    first = body["reports"][0]["attacks"]
    assert [(record["kind"], record["knowledge"]) for record in first] == [
        ("pgd", "oblivious"),
        ("pgd", "transfer"),
        ("pgd", "static"),
        ("ensemble", "adaptive"),
    ]
    stages = [stage["name"] for stage in first[-1]["stages"]]
    assert stages[1:4] == ["transfer-undefended", "transfer-bypassed", f"transfer-{ref}"]


def test_the_smallest_radius_is_bracketed_on_demand(server: Running) -> None:
    found = report(server, minimal=True, defenses=["bit_depth:6"])["reports"][0]["minimal_radius"]
    assert 0 <= found["unbroken"] < found["broken"] <= 64 / 255


def test_an_attack_in_vain_is_tested_on_demand(server: Running) -> None:
    found = report(server, self_test=True, eps="0.1/255")["reports"][0]
    assert found["self_test"]["found"] == found["self_test"]["valid"] == 3
    assert [flag["fired"] for flag in found["diagnostics"] if flag["id"] == "S1"] == [False]
    assert report(server, eps="0.1/255")["reports"][0]["self_test"] is None


def test_who_names_no_deadline_waits_so_long_for_each_report(tmp_path: Path) -> None:
    with serving(tmp_path, probe={"report_seconds": 0.001}) as server:
        assert ask(server, steps=100).json()["code"] == "deadline-exceeded", (
            "there was no time for the clean decision"
        )
        assert ask(server, steps=1, deadline_ms=60_000).status_code == 200


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({}, 60),
        ({"defenses": ["none", "jpeg"]}, 120),
        ({"prompt_sets": ["a", "b"], "defenses": ["none", "jpeg"]}, 120),
        ({"deadline_ms": 1500}, 1.5),
    ],
)
def test_patience_grows_with_the_reports_up_to_two_minutes_unless_it_is_named(
    asked: dict[str, Any], seconds: float
) -> None:
    request = parse(ProbeRequest, {"image": b"", "labels": LABELS, **asked}, LimitSettings())
    assert patience_seconds(request, ProbeSettings()) == seconds


def test_the_deadline_holds_for_the_diagnostics_too(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"eps": "16/255", "steps": 10}
    assert report(server, **asked)["verdict"] == "broken", (
        "after M7 only checks follow that ask the classifier without a score"
    )
    honest = strength.noise_beats_gradient

    def late(*arguments: Any) -> Any:
        found = honest(*arguments)
        time.sleep(1.1)
        return found

    monkeypatch.setattr(checks, "noise_beats_gradient", late)
    body = report(server, **asked, deadline_ms=1000)
    assert body["verdict"] == "broken"
    assert body["reports"][0]["cut"] == "deadline"


def test_classification_and_health_go_on_while_a_probe_runs(server: Running) -> None:
    answers: list[httpx.Response] = []
    probing = threading.Thread(target=lambda: answers.append(ask(server, **LONG, deadline_ms=6000)))
    probing.start()
    waits: list[float] = []
    while probing.is_alive():
        started = time.monotonic()
        assert server.client.get("/livez").status_code == 200
        waits.append(time.monotonic() - started)
        assert (
            server.client.post("/classify", files={"image": picture()}, data={"labels": LABELS}).status_code
            == 200
        )
    assert answers[0].json()["reports"][-1]["cut"] == "deadline", "the probe was to outlast everything else"
    assert len(waits) > 3
    assert sorted(waits)[len(waits) // 2] < 0.2


def test_a_client_that_leaves_cancels_its_probe_and_the_next_one_runs(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with (
            pytest.raises(httpx.ReadTimeout),
            httpx.Client(base_url=server.url, timeout=0.3, trust_env=False) as impatient,
        ):
            impatient.post(
                "/probe",
                files={"image": picture()},
                data={"labels": LABELS, "steps": "300", "defenses": ["none"] * 16, "deadline_ms": "100000"},
            )
        started = time.monotonic()
        assert ask(server, steps=1).status_code == 200
        assert time.monotonic() - started < 10
        wait_until(lambda: server.metric("robustclip_rejected_total", reason="client-gone") == 1)


def test_a_full_queue_is_refused_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, probe={"queue": 0}) as server:
        running = threading.Thread(target=lambda: ask(server, **LONG, deadline_ms=1500))
        running.start()
        wait_until(lambda: server.service.probes.pending == 1)
        response = ask(server)
        assert response.status_code == 503
        assert response.json()["code"] == "queue-full"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        running.join()
