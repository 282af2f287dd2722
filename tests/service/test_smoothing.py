"""Smoothing as a served rule, on a real server: votes are told, an answer they don't prove is not given."""

from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import torch
from serving import LABELS, Running, picture, serving

from robustclip.certificates.vote import count_votes, draw, elect, smoothing_of, vote_seeds
from robustclip.defenses import bind_chain, parse_defenses
from robustclip.errors import InvalidInput
from robustclip.images import load_pixels
from robustclip.models.classifier import Defended, zero_shot
from robustclip.models.clip import Clip
from robustclip.seeds import draw_seeds
from service.answers import ClassifyAnswer

CHAIN = [{"kind": "smoothing", "sigma": 0.5, "votes": 40, "alpha": 0.01}, "bit_depth:4", "resize_pad"]


def ask(server: Running, defense: Any, *pictures: bytes, **fields: Any) -> httpx.Response:
    request = orjson.dumps({"labels": LABELS, "defense": defense, "seed": 7, "top_k": 0, **fields})
    images = [("image", each) for each in pictures or (picture(),)]
    return server.client.post(
        "/classify", files=[*images, ("request", ("request.json", request, "application/json"))]
    )


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    ClassifyAnswer.model_validate(response.json())
    return response.json()["results"]


def test_the_votes_are_the_library_s_own(server: Running, tiny: Clip) -> None:
    chain = parse_defenses(CHAIN)
    rule = smoothing_of(chain)
    assert rule is not None
    prompts = server.service.engine.sets.snapshot.named("handcrafted").prompts
    classifier = zero_shot(tiny, prompts, tuple(LABELS))
    with torch.no_grad():
        seeds = vote_seeds(int(draw_seeds(7, 1)), rule)
        logits = draw(
            Defended(classifier, bind_chain(chain, classifier.encoder)),
            load_pixels(picture(), tiny.image_size),
            seeds,
        )
    expected = elect(count_votes(logits), LABELS, rule)
    (found,) = results(ask(server, CHAIN))
    assert found["smoothing"] == expected.model_dump()
    assert sum(found["smoothing"]["counts"].values()) == 40
    assert bool(found["predictions"]) is not expected.abstained
    assert results(ask(server, CHAIN)) == [found]
    assert results(ask(server, CHAIN, seed=8)) != [found]


def test_a_proven_answer_has_the_shares_of_the_votes_as_scores(server: Running) -> None:
    (found,) = results(ask(server, [{"kind": "smoothing", "sigma": 0.001, "votes": 20}]))
    best = found["predictions"][0]
    assert found["smoothing"]["counts"] == {best["label"]: 20}
    assert not found["smoothing"]["abstained"]
    assert best["score"] == found["margin"] == 1.0
    (plain,) = results(ask(server, "none"))
    assert "smoothing" not in plain
    assert plain["predictions"][0]["label"] == best["label"]
    assert plain["predictions"][0]["logit"] == pytest.approx(best["logit"], abs=0.5)


def test_an_unproven_answer_is_not_given(server: Running) -> None:
    (found,) = results(ask(server, [{"kind": "smoothing", "sigma": 0.001, "votes": 10}]))
    assert found["smoothing"]["abstained"]
    assert found["smoothing"]["p_value"] == pytest.approx(2 * 0.5**10)
    assert found["predictions"] == []
    assert found["margin"] is None


def test_pictures_vote_apart(server: Running) -> None:
    together = results(ask(server, CHAIN, picture(), picture(1), b"no picture"))
    assert [result.get("error", {}).get("code") for result in together] == [
        None,
        None,
        "image-format-refused",
    ]
    assert together[0]["smoothing"] == results(ask(server, CHAIN))[0]["smoothing"]


def test_a_seed_is_drawn_and_told_when_none_is_given(server: Running) -> None:
    first = ask(server, CHAIN, seed=None).json()
    again = ask(server, CHAIN, seed=first["seed"]).json()
    assert again["results"][0]["smoothing"] == first["results"][0]["smoothing"]
    assert first["defense"][0].items() >= CHAIN[0].items()


@pytest.mark.parametrize(
    ("defense", "pointer"),
    [
        ("smoothing:0", "#/defense/0/sigma"),
        ("smoothing:NaN", "#/defense/0/sigma"),
        ([{"kind": "smoothing", "votes": 0}], "#/defense/0/votes"),
        ([{"kind": "smoothing", "votes": 257}], "#/defense/0/votes"),
        ([{"kind": "smoothing", "votes": 10**9}], "#/defense/0/votes"),
        ([{"kind": "smoothing", "alpha": 1}], "#/defense/0/alpha"),
        ("jpeg,smoothing", "#/defense/1"),
    ],
)
def test_what_can_not_be_voted_on_is_refused_by_its_place(
    server: Running, defense: Any, pointer: str
) -> None:
    response = ask(server, defense)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer


def test_votes_of_many_pictures_are_counted_together(server: Running) -> None:
    response = ask(server, "smoothing", *[picture(seed) for seed in range(3)])
    assert response.status_code == 422
    assert "found 300" in response.text


def test_an_operator_s_rule_that_no_queue_could_hold_stops_the_start(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidInput, match="expected at most 64 votes") as refusal,
        serving(tmp_path, defense={"default": "smoothing"}, engine={"queue_images": 64}),
    ):
        pass
    assert refusal.value.field == "defense.default"


def test_a_probe_of_the_served_vote_certifies_it(server: Running) -> None:
    asked = {
        "labels": LABELS,
        "defenses": [[{"kind": "smoothing", "sigma": 0.001, "votes": 20}], "none"],
        "certify": {"n": 40, "n0": 10},
        "norm": "l2",
        "eps": 1e-4,
        "steps": 1,
        "restarts": 1,
        "modes": ["adaptive"],
        "eot": 2,
    }
    files = [("image", picture()), ("request", ("request.json", orjson.dumps(asked), "application/json"))]
    response = server.client.post("/probe", files=files)
    assert response.status_code == 200, response.text
    voted, plain = response.json()["reports"]
    assert voted["verdict"]["value"] == "certified"
    assert voted["certificate"]["hits"] == 40
    assert voted["certificate"]["radius_l2"] > 1e-4
    assert (voted["certificate"]["sigma"], voted["certificate"]["served"]) == (0.001, True)
    assert (plain["certificate"]["sigma"], plain["certificate"]["served"]) == (0.25, False)
    assert plain["verdict"]["value"] != "certified"


@pytest.mark.parametrize(
    ("certify", "pointer"),
    [
        ({"sigma": 0}, "#/certify/sigma"),
        ({"n": 0}, "#/certify/n"),
        ({"n": 10**9}, "#/certify/n"),
        ({"n": 20_000}, "#/certify/n"),
    ],
)
def test_noise_that_can_not_be_certified_with_is_refused_by_its_place(
    server: Running, certify: dict[str, Any], pointer: str
) -> None:
    request = orjson.dumps({"labels": LABELS, "certify": certify})
    response = server.client.post(
        "/probe", files=[("image", picture()), ("request", ("request.json", request, "application/json"))]
    )
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer
