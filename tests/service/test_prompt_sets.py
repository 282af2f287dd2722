"""Prompt sets over HTTP, and following a store that other processes write."""

import os
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
from prompt_sets import learned_set
from safetensors.torch import save_file
from serving import LABELS, Running, picture, serving, wait_until

from prompts_store.codec import encode
from prompts_store.manifest import Ref
from prompts_store.shelf import Pointer, Shelf
from robustclip.models.clip import Clip
from service.answers import SetList, SetState, VersionList


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """A server whose watcher looks once in an hour: what changes, changes over HTTP."""
    with serving(tmp_path_factory.mktemp("quiet"), store={"poll_seconds": 3600}) as running:
        yield running


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with serving(tmp_path_factory.mktemp("following")) as running:
        yield running


def served(server: Running, name: str) -> str | None:
    response = server.client.get(f"/prompt-sets/{name}")
    return response.json().get("version") if response.status_code == 200 else None


def activate(server: Running, ref: Ref, **headers: str) -> httpx.Response:
    return server.client.post(
        f"/prompt-sets/{ref.name}/activate", json={"version": ref.version}, headers=headers
    )


def test_answers_keep_to_their_schemas(quiet: Running) -> None:
    SetList.model_validate(quiet.client.get("/prompt-sets").json())
    SetState.model_validate(quiet.client.get("/prompt-sets/handcrafted").json())
    VersionList.model_validate(quiet.client.get("/prompt-sets/handcrafted/versions").json())
    names = [each["name"] for each in quiet.client.get("/prompt-sets").json()["data"]]
    assert {"handcrafted", "handcrafted-ensemble"} <= set(names)


def test_activating_serves_a_version_and_moves_the_store_s_pointer(quiet: Running, tiny: Clip) -> None:
    first, second = (quiet.store.publish(learned_set(tiny, name="moved", seed=seed)) for seed in (1, 2))
    for ref in (first, second):
        assert activate(quiet, ref).json()["version"] == ref.version
        assert quiet.store.active(tiny.fingerprint)["moved"] == ref
        answer = quiet.client.post(
            "/classify", files={"image": picture()}, data={"labels": LABELS, "prompt_set": "moved"}
        )
        assert answer.headers["x-prompt-set"] == str(ref)
    listed = quiet.client.get("/prompt-sets/moved/versions").json()["data"]
    assert {each["version"]: each["state"] for each in listed} == {
        first.version: "available",
        second.version: "active",
    }


def test_rolling_back_twice_is_where_it_began(quiet: Running, tiny: Clip) -> None:
    first, second = (quiet.store.publish(learned_set(tiny, name="back", seed=seed)) for seed in (1, 2))
    activate(quiet, first)
    refused = quiet.client.post("/prompt-sets/back/rollback")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing-to-roll-back")
    activate(quiet, second)
    assert quiet.client.post("/prompt-sets/back/rollback").json()["version"] == first.version
    assert quiet.store.active(tiny.fingerprint)["back"] == first
    assert quiet.client.post("/prompt-sets/back/rollback").json()["version"] == second.version


def test_a_stale_etag_moves_nothing(quiet: Running, tiny: Clip) -> None:
    first, second = (quiet.store.publish(learned_set(tiny, name="tagged", seed=seed)) for seed in (1, 2))
    tag = activate(quiet, first).headers["etag"]
    assert tag == quiet.client.get("/prompt-sets/tagged").headers["etag"]
    assert activate(quiet, second, **{"If-Match": tag}).status_code == 200
    for response in (
        activate(quiet, first, **{"If-Match": tag}),
        quiet.client.post("/prompt-sets/tagged/rollback", headers={"If-Match": tag}),
    ):
        assert (response.status_code, response.json()["code"]) == (412, "etag-mismatch")
    assert served(quiet, "tagged") == second.version
    assert activate(quiet, first, **{"If-Match": "*"}).status_code == 200


@pytest.mark.parametrize(
    ("name", "version", "status", "code"),
    [
        ("nowhere", "0" * 12, 404, "unknown-prompt-set"),
        ("handcrafted", "0" * 12, 404, "unknown-version"),
        ("handcrafted", "../../../etc", 422, "validation"),
        ("HANDCRAFTED", "0" * 12, 422, "validation"),
        ("..", "0" * 12, 404, "unknown-route"),
        ("%2e%2e%2fany", "0" * 12, 404, "unknown-route"),
    ],
)
def test_what_is_not_there_can_t_be_activated(
    quiet: Running, name: str, version: str, status: int, code: str
) -> None:
    response = quiet.client.post(f"/prompt-sets/{name}/activate", json={"version": version})
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_a_refused_version_is_not_activated_and_says_why(quiet: Running, tiny: Clip) -> None:
    good = quiet.store.publish(learned_set(tiny, name="guarded", seed=1))
    activate(quiet, good)
    file = quiet.store.root / tiny.fingerprint[:8] / "guarded" / f"{'0' * 12}.safetensors"
    file.write_bytes(encode(learned_set(tiny, name="guarded", seed=2))[:-7])
    response = activate(quiet, Ref("guarded", "0" * 12))
    assert (response.status_code, response.json()["code"]) == (422, "prompt-set-invalid")
    assert response.json()["errors"][0]["code"] == "not-safetensors"
    assert served(quiet, "guarded") == good.version
    assert quiet.store.active(tiny.fingerprint)["guarded"] == good
    states = {
        each["version"]: each["reason"]
        for each in quiet.client.get("/prompt-sets/guarded/versions").json()["data"]
    }
    assert states["0" * 12] == "not-safetensors"


def test_a_read_only_store_is_served_and_refuses_to_move(tmp_path: Path, following: Running) -> None:
    (tmp_path / "store").symlink_to(following.store.root)
    with serving(tmp_path, store={"read_only": True}) as server:
        version = served(server, "handcrafted")
        response = server.client.post("/prompt-sets/handcrafted/activate", json={"version": version})
        assert (response.status_code, response.json()["code"]) == (409, "store-read-only")


def test_a_set_published_by_another_process_is_followed(following: Running, tiny: Clip) -> None:
    for seed in (1, 2):
        ref = following.store.publish(learned_set(tiny, name="followed", seed=seed), activate=True)
        wait_until(lambda ref=ref: served(following, "followed") == ref.version, seconds=30)
    back = following.store.rollback("followed", tiny.fingerprint)
    wait_until(lambda: served(following, "followed") == back.version, seconds=30)
    assert (
        following.metric(
            "robustclip_prompt_set_info", name="followed", version=back.version, modalities="text"
        )
        == 1
    )
    assert (
        following.metric(
            "robustclip_prompt_set_info", name="followed", version=ref.version, modalities="text"
        )
        == 0
    )


def test_a_new_version_is_warm_before_it_is_served(following: Running, tiny: Clip) -> None:
    asked = {
        "files": {"image": picture()},
        "data": {"labels": ["never asked", "before"], "prompt_set": "warm"},
    }
    for seed in (1, 2):
        ref = following.store.publish(learned_set(tiny, name="warm", seed=seed), activate=True)
        wait_until(lambda ref=ref: served(following, "warm") == ref.version, seconds=30)
        before = following.metric("robustclip_text_forwards_total")
        assert following.client.post("/classify", **asked).headers["x-prompt-set"] == str(ref)
        passes = following.metric("robustclip_text_forwards_total") - before
        assert passes == (1 if seed == 1 else 0)


def test_a_pointer_that_arrives_before_its_file_is_served_when_the_file_is_whole(
    following: Running, tiny: Clip
) -> None:
    prompt_set = learned_set(tiny, name="copied")
    shelf = following.store.root / tiny.fingerprint[:8] / "copied"
    file, data = shelf / f"{prompt_set.version}.safetensors", encode(prompt_set)
    shelf.mkdir(parents=True)
    (shelf / "ACTIVE").write_text(f"{prompt_set.version}\n")
    wait_until(lambda: reason_of(following, "copied") == "unknown-version", seconds=30)
    file.write_bytes(data[: len(data) // 2])
    wait_until(lambda: reason_of(following, "copied") == "not-safetensors", seconds=30)
    file.write_bytes(data)
    wait_until(lambda: served(following, "copied") == prompt_set.version, seconds=30)


def test_a_file_repaired_in_place_with_its_old_size_and_time_is_served(
    following: Running, tiny: Clip
) -> None:
    ref = following.store.publish(learned_set(tiny, name="repaired", seed=5))
    path = following.store.root / tiny.fingerprint[:8] / ref.name / f"{ref.version}.safetensors"
    whole, before = path.read_bytes(), path.stat()

    def write_in_place(data: bytes) -> None:
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = path.stat()
        assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
            before.st_ino,
            before.st_size,
            before.st_mtime_ns,
        )

    write_in_place(whole[:-4] + bytes(byte ^ 1 for byte in whole[-4:]))
    Shelf(path.parent).point(Pointer(ref.version))
    refused = following.service.engine.sets
    wait_until(lambda: ref.name in refused.snapshot.refused)
    assert refused.snapshot.refused[ref.name].reason == "digest-mismatch"
    failed = following.metric("robustclip_prompt_set_loads_total", result="digest-mismatch")
    time.sleep(0.5)  # five polls
    again = following.metric("robustclip_prompt_set_loads_total", result="digest-mismatch")
    assert again == failed, "an unchanged file is not tried again"
    write_in_place(whole)
    wait_until(lambda: served(following, ref.name) == ref.version)


def test_at_the_start_a_refused_version_falls_back_to_the_one_before(
    tmp_path: Path, tiny: Clip, following: Running
) -> None:
    with serving(tmp_path) as server:
        first, second = (
            server.store.publish(learned_set(tiny, name="fallen", seed=seed), activate=True)
            for seed in (1, 2)
        )
    file = server.store.root / tiny.fingerprint[:8] / "fallen" / f"{second.version}.safetensors"
    file.unlink()
    save_file({}, file)
    with serving(tmp_path) as server:
        state = server.client.get("/prompt-sets/fallen").json()
        assert (state["version"], state["refused_version"], state["reason"]) == (
            first.version,
            second.version,
            "manifest-invalid",
        )


def reason_of(server: Running, name: str) -> str | None:
    refusal = server.service.engine.sets.snapshot.refused.get(name)
    return None if refusal is None else refusal.reason
