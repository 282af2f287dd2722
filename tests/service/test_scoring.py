"""Softmax and sigmoid over HTTP, on a CLIP that was trained with a sigmoid and on one that was not."""

import base64
import math
from collections.abc import Generator
from typing import Any

import httpx
import pytest
from serving import LABELS, Running, picture, serving
from sigmoid import BIAS, sigmoid_backbone

from robustclip.models.scoring import NONE
from service.answers import ClassifyAnswer, ProbeAnswer


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    root = tmp_path_factory.mktemp("biased")
    with serving(root, clip={"arch": str(sigmoid_backbone(root))}) as running:
        yield running


def classified(server: Running, image: bytes | None = None, **fields: Any) -> dict[str, Any]:
    answer = server.client.post(
        "/classify", files={"image": image or picture()}, data={"labels": LABELS, "top_k": 0, **fields}
    )
    assert answer.status_code == 200, answer.text
    ClassifyAnswer.model_validate(answer.json())
    return answer.json()


def probed(server: Running, **fields: Any) -> httpx.Response:
    image = {"type": "base64", "data": base64.b64encode(picture()).decode()}
    asked = {"image": image, "labels": LABELS, "steps": 10, "eps": "16/255", **fields}
    return server.client.post("/probe", json=asked, timeout=150)


def test_the_usual_scoring_is_that_of_the_training(biased: Running, server: Running) -> None:
    info = biased.client.get("/info").json()
    assert (info["default_scoring"], info["model"]["logit_bias"]) == ("sigmoid", BIAS)
    info = server.client.get("/info").json()
    assert (info["default_scoring"], info["model"]["logit_bias"]) == ("softmax", None)
    answer = classified(server)
    assert answer["scoring"] == "softmax"
    assert "none_of_these" not in answer["results"][0]


def test_each_label_has_a_probability_of_its_own(biased: Running) -> None:
    own, shared = classified(biased), classified(biased, scoring="softmax")
    assert (own["scoring"], shared["scoring"]) == ("sigmoid", "softmax")
    result = own["results"][0]
    assert len(result["predictions"]) == len(LABELS)
    for each, other in zip(result["predictions"], shared["results"][0]["predictions"], strict=True):
        assert each["score"] == pytest.approx(1 / (1 + math.exp(-each["logit"])), abs=1e-6)
        assert each["label"] == other["label"]
        assert each["logit"] - other["logit"] == pytest.approx(BIAS, abs=1e-4)
    first, second = (each["score"] for each in result["predictions"][:2])
    assert result["none_of_these"] is False
    assert result["margin"] == pytest.approx(first - max(second, 1 - first), abs=1e-6)
    assert sum(each["score"] for each in shared["results"][0]["predictions"]) == pytest.approx(1, abs=1e-5)


def test_labels_are_judged_without_regard_to_each_other(biased: Running) -> None:
    together = {each["label"]: each["score"] for each in classified(biased)["results"][0]["predictions"]}
    for label, score in together.items():
        answer = classified(biased, labels=[label])["results"][0]
        assert answer["predictions"][0]["score"] == pytest.approx(score, abs=1e-4)
        assert answer["none_of_these"] == (score < 0.5)
    assert {score < 0.5 for score in together.values()} == {True, False}


def test_forms_of_a_request_agree_and_a_vote_may_be_for_none(biased: Running) -> None:
    query = {"labels": "rocket", "scoring": "sigmoid", "defense": "smoothing:0.05"}
    kind = {"Content-Type": "image/png"}
    raw = biased.client.post("/classify", params=query | {"seed": 3}, content=picture(), headers=kind).json()
    form = classified(biased, labels=["rocket"], defense="smoothing:0.05", seed=3)
    assert raw["results"] == form["results"]
    ballot = form["results"][0]["smoothing"]
    assert set(ballot["counts"]) <= {"rocket", NONE}
    if not ballot["abstained"]:
        winner = next(iter(ballot["counts"]))
        assert form["results"][0]["none_of_these"] == (winner == NONE)


def test_a_probe_breaks_what_is_served_and_says_under_which_scoring(biased: Running) -> None:
    for scoring in ("sigmoid", "softmax"):
        response = probed(biased, scoring=scoring, **{"return": ["adversarial"]})
        assert response.status_code == 200, response.text
        ProbeAnswer.model_validate(response.json())
        (report,) = response.json()["reports"]
        assert response.json()["scoring"] == report["victim"]["scoring"] == scoring
        assert report["verdict"]["value"] == "broken"
        record = next(record for record in report["attacks"] if record["success_8bit"])
        png = base64.b64decode(record["adversarial_png"])
        result = classified(biased, png, scoring=scoring)["results"][0]
        answer = NONE if result.get("none_of_these") else result["predictions"][0]["label"]
        assert answer == record["label"]


def test_none_of_these_is_a_target_and_one_label_is_enough(biased: Running) -> None:
    best = classified(biased)["results"][0]["predictions"][0]["label"]
    response = probed(biased, labels=[best], target_label=NONE, eps="32/255")
    (report,) = response.json()["reports"]
    assert (report["verdict"]["value"], report["attacks"][0]["label"]) == ("broken", NONE)


def test_a_target_that_the_picture_shows_already_is_clean_wrong(biased: Running, server: Running) -> None:
    for running in (biased, server):
        clean = classified(running)["results"][0]["predictions"][0]["label"]
        other = next(label for label in LABELS if label != clean)
        for truth in ({"true_label": other}, {}):
            (report,) = probed(running, target_label=clean, **truth).json()["reports"]
            assert (report["verdict"]["reason"], report["attacks"]) == ("clean-wrong", [])


@pytest.mark.parametrize("path", ["/classify", "/probe"])
def test_what_a_scoring_can_t_take_is_refused_by_field(biased: Running, server: Running, path: str) -> None:
    image = {"type": "base64", "data": base64.b64encode(picture()).decode()}

    def pointer(running: Running, **fields: Any) -> str:
        answer = running.client.post(path, json={"image": image, "labels": LABELS, **fields})
        assert answer.status_code == 422, answer.text
        return answer.json()["errors"][0]["pointer"]

    assert pointer(server, scoring="sigmoid") == "#/scoring"
    assert pointer(biased, scoring="relu") == "#/scoring"
    assert pointer(server, labels=["cat"]) == "#/labels"
    assert pointer(biased, labels=["cat"], scoring="softmax") == "#/labels"
    assert pointer(biased, labels=[]) == "#/labels"
    assert pointer(biased, labels=["cat", "None of these"]) == "#/labels/1"
