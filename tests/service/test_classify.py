"""POST /classify on a real server: forms, answers, provenance."""

import base64
from typing import Any

import httpx
import orjson
import pytest
import torch
from prompt_sets import learned_set
from serving import LABELS, Running, picture

from prompts_store.manifest import PromptSet
from robustclip.defenses import bind_chain, parse_defenses
from robustclip.images import load_pixels
from robustclip.models.classifier import Defended, zero_shot
from robustclip.models.clip import Clip
from robustclip.models.prompts import Prompts
from robustclip.seeds import draw_seeds
from service.answers import ClassifyAnswer


def encoded(data: bytes) -> dict[str, str]:
    return {"type": "base64", "data": base64.b64encode(data).decode()}


def ask(server: Running, **fields: Any) -> httpx.Response:
    return server.client.post("/classify", json={"image": encoded(picture()), "labels": LABELS, **fields})


def answer(server: Running, **fields: Any) -> dict[str, Any]:
    response = ask(server, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def scores(body: dict[str, Any], index: int = 0) -> dict[str, float]:
    return {item["label"]: item["logit"] for item in body["results"][index]["predictions"]}


def every_form(server: Running) -> dict[str, httpx.Response]:
    data, post = picture(), server.client.post
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    words, listed = ",".join(LABELS), orjson.dumps(LABELS).decode()
    request = orjson.dumps({"labels": LABELS, "top_k": 0})
    raw = {"content": data, "headers": {"content-type": "image/png"}}
    untyped = {"content": data, "headers": {"content-type": "application/octet-stream"}}
    return {
        "json": post("/classify", json={"image": encoded(data), "labels": LABELS, "top_k": 0}),
        "json, several": post("/classify", json={"images": [encoded(data)], "labels": LABELS, "top_k": 0}),
        "json, data uri": post("/classify", json={"image": uri, "labels": LABELS, "top_k": 0}),
        "json, options in the query": post("/classify?top_k=0", json={"image": uri, "labels": LABELS}),
        "form, repeated labels": post(
            "/classify", files={"image": data}, data={"labels": LABELS, "top_k": "0"}
        ),
        "form, comma list": post("/classify", files={"image": data}, data={"labels": words, "top_k": "0"}),
        "form, JSON list": post("/classify", files={"image": data}, data={"labels": listed, "top_k": "0"}),
        "form, request part": post(
            "/classify", files={"image": data, "request": ("request.json", request, "application/json")}
        ),
        "raw, repeated labels": post("/classify", params={"labels": LABELS, "top_k": 0}, **raw),
        "raw, comma list": post("/classify", params={"labels": words, "top_k": 0}, **raw),
        "raw, of unknown type": post("/classify", params={"labels": words, "top_k": 0}, **untyped),
    }


def specific_set(clip: Clip) -> PromptSet:
    """A set with a context of its own for each of LABELS."""
    like = learned_set(clip, name="specific", labels=tuple(LABELS)).manifest
    text = torch.randn(len(LABELS), 1, 4, clip.text_width, generator=torch.Generator().manual_seed(0))
    return PromptSet(
        like.model_copy(update={"class_specific": True}),
        Prompts(text, None, like.templates, class_specific=True),
    )


def test_all_forms_of_a_request_get_the_same_predictions(server: Running) -> None:
    found = {form: response.json() for form, response in every_form(server).items()}
    expected = found["json"]["results"][0]["predictions"]
    assert len(expected) == len(LABELS)
    for form, body in found.items():
        assert body["results"][0]["predictions"] == expected, form


@pytest.mark.parametrize("defense", ["none", "jpeg:75,bit_depth:4", "resize_pad"])
def test_the_answer_is_the_library_s_own_classifier(server: Running, tiny: Clip, defense: str) -> None:
    prompts = server.service.engine.sets.snapshot.named("handcrafted").prompts
    classifier = zero_shot(tiny, prompts, tuple(LABELS))
    defended = Defended(classifier, bind_chain(parse_defenses(defense), classifier.encoder))
    with torch.no_grad():
        expected = defended(load_pixels(picture(), tiny.image_size)[None], draw_seeds(7, 1))[0]
    found = scores(answer(server, defense=defense, seed=7, top_k=0))
    assert [found[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-3)


def test_an_answer_says_all_that_is_needed_to_repeat_it(server: Running) -> None:
    response = ask(server, defense=[{"kind": "jpeg", "quality": 60}])
    body = response.json()
    ClassifyAnswer.model_validate(body)
    active = server.service.engine.sets.snapshot.named("handcrafted")
    assert (
        response.headers["x-prompt-set"] == str(active.ref) == "{name}@{version}".format(**body["prompt_set"])
    )
    assert body["defense"][0]["kind"] == "jpeg"
    assert body["defense"][0]["quality"] == 60
    assert body["model"]["fingerprint"] == server.service.engine.clip.fingerprint
    assert body["id"] == response.headers["x-request-id"]
    assert {"read", "decode", "queue", "defense", "infer", "score", "total"} == set(body["timing_ms"])
    for stage in ("decode", "infer", "total"):
        assert f"{stage};dur=" in response.headers["server-timing"]


def test_predictions_are_sorted_and_their_margin_is_the_lead(server: Running) -> None:
    result = answer(server, top_k=0)["results"][0]
    found = [item["score"] for item in result["predictions"]]
    assert found == sorted(found, reverse=True)
    assert sum(found) == pytest.approx(1)
    assert result["margin"] == pytest.approx(found[0] - found[1])


@pytest.mark.parametrize(("top_k", "count"), [(0, 4), (1, 1), (3, 3), (100, 4)])
def test_top_k_bounds_the_predictions(server: Running, top_k: int, count: int) -> None:
    assert len(answer(server, top_k=top_k)["results"][0]["predictions"]) == count


def test_temperature_divides_the_logits(server: Running) -> None:
    plain, hot = scores(answer(server)), scores(answer(server, temperature=10))
    assert {label: 10 * logit for label, logit in hot.items()} == pytest.approx(plain, rel=1e-4)


def test_a_randomised_defense_draws_a_seed_that_repeats_the_answer(server: Running) -> None:
    first = answer(server, defense="resize_pad")
    assert isinstance(first["seed"], int)
    assert scores(answer(server, defense="resize_pad", seed=first["seed"])) == pytest.approx(
        scores(first), abs=1e-4
    )
    others = [scores(answer(server, defense="resize_pad", seed=seed)) for seed in range(3)]
    assert any(other != pytest.approx(scores(first), abs=1e-3) for other in others)
    assert answer(server)["seed"] is None


def test_batch_mates_change_nothing(server: Running) -> None:
    images = [encoded(picture(seed)) for seed in range(5)]
    together = server.client.post(
        "/classify", json={"images": images, "labels": LABELS, "defense": "jpeg", "top_k": 0}
    ).json()
    for index, image in enumerate(images):
        alone = answer(server, image=image, defense="jpeg", top_k=0)
        assert scores(alone) == pytest.approx(scores(together, index), abs=1e-3)


def test_a_bad_picture_among_good_ones_fails_alone(server: Running) -> None:
    images = [encoded(picture()), encoded(b"no picture"), encoded(picture()[:200])]
    response = server.client.post("/classify", json={"images": images, "labels": LABELS})
    body = response.json()
    ClassifyAnswer.model_validate(body)
    assert response.status_code == 200
    assert body["errors"] == 2
    assert [result.get("error", {}).get("code") for result in body["results"]] == [
        None,
        "image-format-refused",
        "image-undecodable",
    ]
    assert body["results"][1]["error"]["errors"][0]["pointer"] == "#/images/1"


def test_bad_pictures_only_are_a_problem_with_an_error_for_each(server: Running) -> None:
    response = server.client.post(
        "/classify", json={"images": [encoded(b"no picture")] * 2, "labels": LABELS}
    )
    assert response.status_code == 422
    assert response.json()["code"] == "image-format-refused"
    assert [item["pointer"] for item in response.json()["errors"]] == ["#/images/0", "#/images/1"]


def test_labels_are_composed_and_stripped(server: Running) -> None:
    body = answer(server, labels=[" cafe\u0301 ", "dog"], top_k=0)
    assert set(scores(body)) == {"caf\u00e9", "dog"}


def test_labels_are_answered_as_they_were_written_and_read_as_one_sees_them(server: Running) -> None:
    seen = scores(answer(server, labels=["cat", "sea horse", "rocket"], top_k=0))
    written = ["c\u200bat", "Sea_Horse", "rock\u2060et"]
    assert list(scores(answer(server, labels=written, top_k=0)).values()) == pytest.approx(
        list(seen.values()), abs=1e-6
    )
    assert set(scores(answer(server, labels=written, top_k=0))) == set(written)
    response = ask(server, labels=["cat", "dog", "ca\u00adt"])
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "#/labels/2")


@pytest.mark.parametrize("text", ['"a cat, sitting",dog', ' ["a cat, sitting", "dog"]'])
def test_a_label_with_a_comma_is_quoted_in_a_form_and_in_a_query(server: Running, text: str) -> None:
    data = picture()
    forms = (
        {"files": {"image": data}, "data": {"labels": text}},
        {"content": data, "headers": {"Content-Type": "image/png"}, "params": {"labels": text}},
    )
    for form in forms:
        response = server.client.post("/classify", **form)
        assert set(scores(response.json())) == {"a cat, sitting", "dog"}, response.text
    response = server.client.post("/classify", files={"image": data}, data={"labels": '"a cat, dog'})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "#/labels")


def test_a_pinned_version_is_served_although_another_is_active(server: Running, tiny: Clip) -> None:
    pinned = server.store.publish(learned_set(tiny, name="pinned", seed=5))
    body = answer(server, prompt_set=str(pinned))
    assert body["prompt_set"]["version"] == pinned.version
    assert server.client.get("/prompt-sets/pinned").status_code == 404


def test_a_set_with_a_context_for_each_label_follows_the_order_of_the_request(
    server: Running, tiny: Clip
) -> None:
    ref = server.store.publish(specific_set(tiny))
    forward = answer(server, prompt_set=str(ref), top_k=0)
    backward = answer(server, prompt_set=str(ref), labels=LABELS[::-1], top_k=0)
    assert scores(forward) == pytest.approx(scores(backward), abs=1e-3)
    response = ask(server, prompt_set=str(ref), labels=["cat", "zebra"])
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/labels/1"


def test_visual_prompts_reach_the_image_tower(server: Running, tiny: Clip) -> None:
    ref = server.store.publish(learned_set(tiny, name="seeing", visual=True))
    blind = server.store.publish(learned_set(tiny, name="seeing", visual=False))
    body = answer(server, prompt_set=str(ref))
    assert body["prompt_set"]["modalities"] == ["text", "vision"]
    assert scores(body) != pytest.approx(scores(answer(server, prompt_set=str(blind))), abs=1e-2)


def test_the_second_request_with_the_same_labels_costs_no_text_pass(server: Running) -> None:
    labels = ["one of a kind", "another of its kind"]
    before = server.metric("robustclip_text_forwards_total")
    answer(server, labels=labels)
    assert server.metric("robustclip_text_forwards_total") > before
    before = server.metric("robustclip_text_forwards_total")
    answer(server, labels=labels)
    assert server.metric("robustclip_text_forwards_total") == before
