"""The service's image, built for real and asked for an answer. Minutes and root: run with `-m image`."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.image

ROOT = Path(__file__).resolve().parents[2]
BUILDER = ROOT.parent / "shared" / "tools" / "build-image"
TAG = "localhost/robustclip:test"


def in_image(*command: str) -> list[str]:
    return [str(BUILDER), "--run", TAG, "--", *command]


@pytest.fixture(scope="module")
def image() -> str:
    if not BUILDER.is_file() or os.geteuid() != 0:
        pytest.skip("../shared/tools/build-image is absent, or this is not root")
    built = subprocess.run(
        [str(BUILDER), "--tag", TAG, "--target", "service", str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-4000:]
    return TAG


@pytest.fixture(scope="module")
def address(image: str) -> Iterator[str]:
    """A running service from the image, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(in_image("robustclip", "serve", "--port", str(port)), start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url, seconds=300)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the service ended before it was ready"
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"not ready after {seconds} s")


def test_the_image_runs_without_rights_in_an_empty_folder(image: str) -> None:
    shown = subprocess.run(
        in_image("sh", "-c", "id -u; pwd; ls -A"), capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["10001", "/srv"]


def test_the_image_carries_no_build_or_test_tools(image: str) -> None:
    listed = subprocess.run(
        in_image("python", "-m", "pip", "list", "--format=freeze"), capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0].lower() for line in listed.stdout.splitlines()}
    assert "robustclip" in names
    assert not names & {"pytest", "ruff", "pyright", "hatchling"}


def test_the_service_in_the_image_classifies(address: str) -> None:
    picture = files("skimage.data").joinpath("chelsea.png").read_bytes()
    answer = httpx.post(
        f"{address}/classify",
        params={"labels": ["cat", "rocket"]},
        content=picture,
        headers={"content-type": "image/png"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["predictions"][0]["label"] == "cat"
