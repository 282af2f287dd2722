"""Stored witnesses as a gate, with a real server: a version that falls for what the served one withstands is
not served in its place.
"""

import base64
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from prompt_sets import learned_set
from serving import LABELS, Running, picture, serving, wait_until

from prompts_store.manifest import Ref
from robustclip.errors import InvalidInput, ReportRefused
from robustclip.models.clip import Clip


class Gated(NamedTuple):
    """A server with an empty folder of witnesses, `old` being served, and an answer of /probe with a witness
    that fools `new` alone.
    """

    server: Running
    folder: Path
    old: Ref
    new: Ref
    answer: dict[str, Any]

    def activate(self, ref: Ref, **body: object) -> httpx.Response:
        return self.server.client.post(
            f"/prompt-sets/{ref.name}/activate", json={"version": ref.version, **body}
        )

    @property
    def served(self) -> str:
        return self.server.client.get(f"/prompt-sets/{self.old.name}").json()["version"]


def decided(server: Running, png: bytes, ref: Ref) -> str:
    answer = server.client.post(
        "/classify", files={"image": png}, data={"labels": LABELS, "prompt_set": str(ref)}
    )
    return answer.json()["results"][0]["predictions"][0]["label"]


def witness_against(server: Running, new: Ref, old: Ref) -> dict[str, Any]:
    """The first probe of `new` that leaves a picture on which `old` still says what was right."""
    for seed in range(40):
        asked = {
            "labels": LABELS,
            "prompt_sets": [str(new)],
            "eps": "4/255",
            "steps": "5",
            "return": "adversarial",
        }
        answer = server.client.post("/probe", files={"image": picture(seed)}, data=asked).json()
        report = answer["reports"][0]
        png = report["attacks"][0]["adversarial_png"]
        if (
            report["verdict"]["value"] == "broken"
            and png
            and decided(server, base64.b64decode(png), old) == report["input"]["true_label"]
        ):
            return answer
    raise AssertionError("no picture tells the two sets apart")


@pytest.fixture
def gated(tmp_path: Path, tiny: Clip, evidence: dict[str, Any]) -> Generator[Gated]:
    folder = tmp_path / "witnesses"
    folder.mkdir()
    with serving(tmp_path, store={"witnesses": folder}) as server:
        old, new = (server.store.publish(learned_set(tiny, name="gated", seed=seed)) for seed in (1, 2))
        found = Gated(server, folder, old, new, evidence)
        assert found.activate(old).status_code == 200
        yield found


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory, tiny: Clip) -> dict[str, Any]:
    with serving(tmp_path_factory.mktemp("evidence")) as server:
        old, new = (server.store.publish(learned_set(tiny, name="gated", seed=seed)) for seed in (1, 2))
        return witness_against(server, new, old)


def test_a_version_that_newly_falls_for_a_witness_is_not_activated_unless_forced(gated: Gated) -> None:
    (gated.folder / "found.json").write_text(json.dumps(gated.answer))
    refused = gated.activate(gated.new)
    assert (refused.status_code, refused.json()["code"]) == (409, "gate-failed")
    assert "1 of 1 stored witnesses" in refused.json()["detail"]
    assert "found.json#/attacks/0" in refused.json()["detail"]
    assert str(gated.folder) not in refused.text
    assert gated.served == gated.old.version
    assert gated.server.store.active(gated.server.service.engine.clip.fingerprint)["gated"] == gated.old
    assert gated.activate(gated.new, force=True).json()["version"] == gated.new.version
    assert gated.server.client.post("/prompt-sets/gated/rollback").json()["version"] == gated.old.version


def test_the_watcher_asks_the_same_gate(gated: Gated) -> None:
    (gated.folder / "found.json").write_text(json.dumps(gated.answer))
    gated.server.store.activate(gated.new, gated.server.service.engine.clip.fingerprint)
    wait_until(
        lambda: gated.server.client.get("/prompt-sets/gated").json()["reason"] == "gate-failed", seconds=30
    )
    state = gated.server.client.get("/prompt-sets/gated").json()
    assert (state["version"], state["refused_version"]) == (gated.old.version, gated.new.version)
    assert "found.json" in state["message"]


def test_without_a_witness_against_it_a_version_passes(gated: Gated) -> None:
    assert gated.activate(gated.new).status_code == 200
    (gated.folder / "found.json").write_text(json.dumps(gated.answer))
    assert gated.activate(gated.old).status_code == 200, "who withstands more passes"


def test_a_damaged_report_is_named_and_nothing_moves(gated: Gated) -> None:
    (gated.folder / "damaged.json").write_text(json.dumps(gated.answer)[:-100])
    refused = gated.activate(gated.new)
    assert refused.json()["code"] == "report-refused"
    assert "damaged.json" in refused.text
    assert str(gated.folder) not in refused.text
    assert gated.served == gated.old.version


def test_a_folder_that_can_t_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as refusal, serving(tmp_path, store={"witnesses": tmp_path / "nowhere"}):
        pass
    assert refusal.value.field == "store.witnesses"
    (tmp_path / "strange.json").write_text("{}")
    with (
        pytest.raises(ReportRefused, match=r"strange\.json"),
        serving(tmp_path, store={"witnesses": tmp_path}),
    ):
        pass
