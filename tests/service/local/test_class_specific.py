"""A set with one context a label finds each context by the name of its label, in any order of labels."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_sets import learned_set

from prompts_store.manifest import PromptSet
from prompts_store.store import PromptStore
from robustclip.errors import InvalidInput
from robustclip.images import pixels_to_png
from robustclip.models.clip import Clip
from service.local.certify import main as certify
from service.local.classify import main as classify
from service.local.probe import main as probe
from service.local.replay import main as replay

LABELS = ("cat", "sea horse", "car")
ALIKE = ("Car", "Sea_Horse", "CA\u00adT")
COMMANDS = {
    "classify": (classify, []),
    "probe": (probe, ["--eps", "1e-6", "--steps", "1"]),
    "certify": (certify, ["--n", "50", "--n0", "10", "--no-cache"]),
}


@pytest.fixture
def arguments(tiny: Clip, tmp_path: Path) -> list[str]:
    """A picture, and a store in which a class-specific set is active."""
    one = learned_set(tiny, name="own", labels=LABELS, class_specific=False)
    text = torch.randn(3, 1, 4, tiny.text_width, generator=torch.Generator().manual_seed(1))
    own = PromptSet(
        one.manifest.model_copy(update={"class_specific": True}),
        replace(one.prompts, text=text, class_specific=True),
    )
    PromptStore(tmp_path / "store").publish(own, activate=True)
    picture = tmp_path / "picture.png"
    picture.write_bytes(pixels_to_png(torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))))
    store = ["--store", str(tmp_path / "store"), "--prompt-set", "own", "--backbone", "tiny", "--json"]
    return [str(picture), *store]


def told(name: str, arguments: list[str], labels: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Any:
    main, options = COMMANDS[name]
    main([*arguments, *options, "--labels", ",".join(labels)])
    return json.loads(capsys.readouterr().out)


def test_labels_in_another_order_have_the_same_probabilities(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = (
        {each["label"]: each["score"] for each in told("classify", arguments, labels, capsys)["predictions"]}
        for labels in (LABELS, LABELS[::-1])
    )
    assert set(first) == set(LABELS)
    assert other == pytest.approx(first, abs=1e-6)


def test_a_probe_and_a_certificate_are_about_the_same_decision_in_any_order(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = (
        told("probe", arguments, labels, capsys)["input"]["clean"] for labels in (LABELS, LABELS[::-1])
    )
    assert other["label"] == first["label"]
    assert other["probability"] == pytest.approx(first["probability"], abs=1e-6)
    first, other = (
        told("certify", arguments, labels, capsys)["certificates"][0] for labels in (LABELS, LABELS[::-1])
    )
    assert (other["label"], other["hits"]) == (first["label"], first["hits"])


def test_a_label_is_paired_as_clip_reads_it_and_answered_as_it_was_written(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = (
        {each["label"]: each["score"] for each in told("classify", arguments, labels, capsys)["predictions"]}
        for labels in (LABELS[::-1], ALIKE)
    )
    assert set(other) == set(ALIKE)
    assert [other[label] for label in ALIKE] == pytest.approx(
        [first[label] for label in LABELS[::-1]], abs=1e-6
    )
    options = ["--true-label", "cat", "--target-label", "sea horse"]
    asked = told("probe", [*arguments, *options], ALIKE, capsys)["input"]
    assert (asked["true_label"], asked["target_label"]) == ("CA\u00adT", "Sea_Horse")
    hits = [
        told("certify", arguments, each, capsys)["certificates"][0]["hits"] for each in (LABELS[::-1], ALIKE)
    ]
    assert hits[0] == hits[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_label_that_the_set_never_learned_is_refused_by_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(InvalidInput, match=r"'own@[0-9a-f]{12}' has no context for 'cow'") as refusal:
        told(name, arguments, ("cat", "cow"), capsys)
    assert refusal.value.field == "labels/1"


def test_a_replay_judges_by_name_and_leaves_out_labels_that_were_never_learned(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for labels in (LABELS[::-1], ("cat", "sea horse", "cow")):
        attack = ["--prompt-set", "handcrafted", "--eps", "32/255", "--steps", "10"]
        handcrafted = [arguments[0], "--backbone", "tiny", "--json", *attack]
        probe([*handcrafted, "--labels", ",".join(labels)])
        (tmp_path / f"{labels[-1]}.json").write_text(capsys.readouterr().out)
    replay([*(str(tmp_path / f"{label}.json") for label in ("cat", "cow")), *arguments[1:]])
    replayed = json.loads(capsys.readouterr().out)
    (judged,), (skipped,) = replayed["judged"], replayed["skipped"]
    assert skipped["source"].startswith(str(tmp_path / "cow.json"))
    assert "no context for 'cow'" in skipped["reason"]
    report = json.loads((tmp_path / "cat.json").read_text())
    record = next(each for each in report["attacks"] if each["witness_sha256"] == judged["sha256"])
    witness = tmp_path / "witness.png"
    witness.write_bytes(base64.b64decode(record["adversarial_png"]))
    best = told("classify", [str(witness), *arguments[1:]], LABELS, capsys)["predictions"][0]
    assert judged["label"] == best["label"]
    assert judged["probability"] == pytest.approx(best["score"], abs=1e-6)
