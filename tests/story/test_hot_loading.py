"""The story of a prompt set: published into the store of a service under load, served, broken, rolled back,
and nobody notices but the answers.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import torch
from prompt_sets import learned_set
from serving import LABELS, Running, picture, serving, wait_until

from prompts_store.codec import encode
from prompts_store.manifest import PromptSet
from robustclip.backbones import build_backbone
from robustclip.backbones.tiny import TINY_CONFIG
from robustclip.models.clip import Clip, describe

NAME = "story"


@dataclass
class Load:
    """Clients that classify without pause; what they saw: (when, status, version by header, version by
    body).
    """

    url: str
    seen: list[tuple[float, int, str, str]] = field(default_factory=list[tuple[float, int, str, str]])
    failures: list[Exception] = field(default_factory=list[Exception])
    stop: threading.Event = field(default_factory=threading.Event)

    def client(self, number: int) -> None:
        images = [("images", picture(seed)) for seed in (number, number + 1)]
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            while not self.stop.is_set():
                try:
                    response = client.post(
                        "/classify", files=images, data={"labels": LABELS, "prompt_set": NAME}
                    )
                    body = response.json()
                    version = "{name}@{version}".format(**body["prompt_set"])
                    self.seen.append(
                        (time.monotonic(), response.status_code, response.headers["x-prompt-set"], version)
                    )
                except Exception as error:  # whatever it is, it is a failed request
                    self.failures.append(error)
                    return

    def versions(self) -> list[str]:
        return [version for _, _, version, _ in sorted(self.seen)]

    def first_of(self, version: str) -> float | None:
        return next((when for when, _, seen, _ in sorted(self.seen) if seen == version), None)


def stranger() -> Clip:
    """Another CLIP of the same shape."""
    torch_state = torch.get_rng_state()
    try:
        return describe(build_backbone(TINY_CONFIG), "stranger", "random")
    finally:
        torch.set_rng_state(torch_state)


def plant(server: Running, tiny: Clip, data: bytes, version: str) -> None:
    """What a careless copy does: bytes under a version's name, and the pointer moved to them by hand."""
    shelf = server.store.root / tiny.fingerprint[:8] / NAME
    (shelf / f"{version}.safetensors").write_bytes(data)
    current = (shelf / "ACTIVE").read_text().split()[0]
    pointer = shelf / "ACTIVE.new"
    pointer.write_text(f"{version}\n{current}\n")
    pointer.replace(shelf / "ACTIVE")


def damaged(tiny: Clip) -> dict[str, tuple[bytes, str, str]]:
    """By refusal code: a file that deserves it, and the version it claims to be. One of each kind that the
    store can meet.
    """
    good = learned_set(tiny, name=NAME, seed=9)
    whole = encode(good)
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    broken = learned_set(tiny, name=NAME, seed=10)
    assert broken.prompts.text is not None
    nan = whole[:-4] + torch.tensor([float("nan")]).numpy().tobytes()
    foreign: PromptSet = learned_set(stranger(), name=NAME, seed=11)
    return {
        "digest-mismatch": (bytes(flipped), good.version, "corrupt"),
        "not-finite": (nan, "a" * 12, "NaN"),
        "foreign-fingerprint": (encode(foreign), foreign.version, "foreign"),
        "not-safetensors": (whole[: len(whole) // 2], "b" * 12, "half-written"),
    }


@pytest.mark.slow
def test_a_set_is_swapped_refused_and_rolled_back_under_load(tmp_path: Path, tiny: Clip) -> None:
    with serving(tmp_path, store={"poll_seconds": 0.5}) as server:
        first, second = (learned_set(tiny, name=NAME, seed=seed) for seed in (1, 2))
        server.store.publish(first, activate=True)
        wait_until(lambda: server.client.get(f"/prompt-sets/{NAME}").status_code == 200, seconds=30)
        load = Load(server.url)
        clients = [threading.Thread(target=load.client, args=(number,)) for number in range(4)]
        for client in clients:
            client.start()
        try:
            wait_until(lambda: len(load.seen) > 60, seconds=60)

            server.store.publish(second, activate=True)
            moved = time.monotonic()
            wait_until(lambda: load.first_of(str(second.ref)) is not None, seconds=30)
            arrived = load.first_of(str(second.ref))
            assert arrived is not None
            assert arrived - moved < 2.0

            for reason, (data, version, _) in damaged(tiny).items():
                plant(server, tiny, data, version)
                wait_until(
                    lambda reason=reason: (
                        server.client.get(f"/prompt-sets/{NAME}").json()["reason"] == reason
                    ),
                    seconds=30,
                )
                state = server.client.get(f"/prompt-sets/{NAME}").json()
                assert (state["version"], state["refused_version"]) == (second.version, version)
                assert server.metric("robustclip_prompt_set_loads_total", result=reason) >= 1

            server.store.activate(first.ref, tiny.fingerprint)
            wait_until(
                lambda: server.client.get(f"/prompt-sets/{NAME}").json()["version"] == first.version,
                seconds=30,
            )
            response = server.client.post(f"/prompt-sets/{NAME}/activate", json={"version": second.version})
            assert response.json()["reason"] is None
            assert server.client.post(f"/prompt-sets/{NAME}/rollback").json()["version"] == first.version
            sofar = len(load.seen)
            wait_until(lambda: len(load.seen) > max(300, sofar + 20), seconds=120)
        finally:
            load.stop.set()
            for client in clients:
                client.join(30)
        assert load.failures == []
        assert {status for _, status, _, _ in load.seen} == {200}
        assert all(header == body for _, _, header, body in load.seen)
        assert set(load.versions()) == {str(first.ref), str(second.ref)}
        assert load.versions()[-1] == str(first.ref)
        assert server.metric("robustclip_rejected_total", reason="internal") == 0
