"""Defenses where people meet them: /classify, /probe and /info on a real server, and the command line. No
code there knows a single one.
"""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving import LABELS, Running, picture

from robustclip import purifiers
from robustclip.defenses import DEFENSES, bind_chain, parse_defenses
from robustclip.images import load_pixels
from robustclip.models.classifier import Defended, zero_shot
from robustclip.models.clip import Clip
from robustclip.seeds import draw_seeds
from service.local.probe import main as probe


def ask(server: Running, path: str, **fields: Any) -> httpx.Response:
    image = {"type": "base64", "data": base64.b64encode(picture()).decode()}
    return server.client.post(path, json={"image": image, "labels": LABELS, **fields})


@pytest.mark.parametrize(
    "chain", ["median,total_variation,wavelet,low_pass:0.3", "counterattack:8/255,clipure_cosine:0.5"]
)
def test_the_answer_is_the_library_s_own_classifier_behind_the_chain(
    server: Running, tiny: Clip, chain: str
) -> None:
    prompts = server.service.engine.sets.snapshot.named("handcrafted").prompts
    classifier = zero_shot(tiny, prompts, tuple(LABELS))
    defended = Defended(classifier, bind_chain(parse_defenses(chain), classifier.encoder))
    with torch.no_grad():
        expected = defended(load_pixels(picture(), tiny.image_size)[None], draw_seeds(7, 1))[0]
    response = ask(server, "/classify", defense=chain, seed=7, top_k=0)
    assert response.status_code == 200, response.text
    body = response.json()
    found = {item["label"]: item["logit"] for item in body["results"][0]["predictions"]}
    assert [found[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=2e-3)
    assert body["timing_ms"]["defense"] > 0


def test_each_is_attacked_by_who_ignores_it_and_by_who_knows_it(server: Running) -> None:
    chains = ["median,low_pass", "counterattack,clipure_cosine"]
    response = ask(
        server, "/probe", defenses=chains, eps="8/255", steps=2, eot=2, fresh_draws=4, deadline_ms=100_000
    )
    assert response.status_code == 200, response.text
    reports = response.json()["reports"]
    gradients = [{part["kind"]: part["gradient"] for part in each["victim"]["defense"]} for each in reports]
    assert gradients == [
        {"median": "surrogate:leaky_median", "low_pass": "exact"},
        {"counterattack": "ste", "clipure_cosine": "exact"},
    ]
    for each in reports:
        assert [record["knowledge"] for record in each["attacks"]] == ["static", "adaptive"]
        flags = {check["id"] for check in each["diagnostics"] if check["fired"]}
        assert not flags & {"M1", "M3", "M9", "M10", "M12"}, each["victim"]["defense"]


def test_info_tells_what_each_defense_declares(server: Running) -> None:
    told = {each["kind"]: each for each in server.client.get("/info").json()["defenses"]}
    assert list(told) == [defense().kind for defense in DEFENSES]
    facts = ("strength", "stage", "gradient", "randomized", "passes")
    assert [told["counterattack"][fact] for fact in facts] == [
        "radius",
        "pixels",
        "ste",
        True,
        {"forward": 3, "backward": 2},
    ]
    assert [told["clipure_cosine"][fact] for fact in facts] == [
        "share",
        "features",
        "exact",
        False,
        {"forward": 0, "backward": 0},
    ]


@pytest.mark.parametrize(
    ("chain", "pointer"),
    [
        ("median:4", "#/defense/0/window"),
        ("jpeg,low_pass:nan", "#/defense/1/cutoff"),
        ("clipure_cosine,median", "#/defense/1"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_stands(server: Running, chain: str, pointer: str) -> None:
    response = ask(server, "/classify", defense=chain)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer


def test_networks_are_served_and_their_files_are_the_operator_s_to_name(server: Running) -> None:
    served = ask(server, "/classify", defense=[{"kind": "diffusion", "weights": "tiny", "steps": 2}], seed=7)
    assert served.status_code == 200, served.text
    for kind in ("super_resolution", "diffusion"):
        response = ask(server, "/classify", defense=["jpeg", {"kind": kind, "weights": "/etc/passwd.json"}])
        assert response.status_code == 422
        assert response.json()["errors"][0]["pointer"] == "#/defense/1"


def test_networks_without_weights_are_refused_to_who_asks_for_them(
    server: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(purifiers, "__file__", str(tmp_path / "__init__.py"))
    purifiers._loaded.cache_clear()  # other tests may have asked for those that ship
    for path, field in (
        ("/classify", {"defense": "jpeg,diffusion"}),
        ("/probe", {"defenses": ["jpeg,super_resolution"], "steps": 1}),
    ):
        response = ask(server, path, **field)
        assert response.status_code == 422, response.text
        assert response.json()["code"] == "purifier-refused"
        assert response.json()["errors"][0]["pointer"] == "#/defense/1/weights"
    assert ask(server, "/classify").status_code == 200


def test_the_command_line_probes_through_a_chain_on_both_sides_of_the_tower(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(picture())
    asked = [
        "--labels",
        "cat,dog,car",
        "--backbone",
        "tiny",
        "--eps",
        "16/255",
        "--steps",
        "5",
        "--defense",
        "low_pass:0.2,clipure_cosine",
        "--json",
    ]
    assert probe([str(path), *asked]) in (0, 1)
    report = json.loads(capsys.readouterr().out)
    assert [part["kind"] for part in report["victim"]["defense"]] == ["low_pass", "clipure_cosine"]
    assert {record["knowledge"] for record in report["attacks"]} >= {"static", "adaptive"}
