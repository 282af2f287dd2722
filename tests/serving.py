"""A real server for tests: uvicorn on a free loopback port in a thread of this process, `tiny` behind it, a
store of its own.
"""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy
import uvicorn
from PIL import Image

from prompts_store.store import PromptStore
from service.app import create_app
from service.config import ServeSettings
from service.startup import Service

LABELS = ["cat", "dog", "rocket", "teapot"]


@dataclass(frozen=True)
class Running:
    """A server that answers, with what a test may want to look into."""

    url: str
    client: httpx.Client
    service: Service
    store: PromptStore

    def metric(self, sample: str, /, **labels: str) -> float:
        """The value of one sample, 0 if it was never touched."""
        return self.service.metrics.registry.get_sample_value(sample, labels) or 0.0


@contextlib.contextmanager
def serving(root: Path, **overrides: dict[str, Any]) -> Generator[Running]:
    """Serve `tiny` with a store below `root` until the block ends; overrides are settings by section."""
    sections: dict[str, dict[str, Any]] = {
        "clip": {"arch": "tiny"},
        "store": {"path": root / "store", "poll_seconds": 0.1},
        "engine": {"threads": 1},
        "log": {"requests": False},
    }
    settings = ServeSettings(
        **{name: {**sections.get(name, {}), **overrides.get(name, {})} for name in {*sections, *overrides}}
    )
    started = threading.Event()
    app = create_app(settings, on_started=lambda service: started.set())
    service: Service = app.state.service
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            assert started.wait(60)
            if service.failure is not None:
                raise service.failure
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield Running(url, client, service, PromptStore(root / "store"))
        finally:
            server.should_exit = True
            thread.join(30)


def picture(seed: int = 0, *, size: int = 48, form: str = "PNG") -> bytes:
    """Encoded bytes of a smooth random picture."""
    noise = numpy.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=numpy.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(buffer, format=form)
    return buffer.getvalue()


def wait_until(condition: Any, *, seconds: float = 10.0) -> float:
    """Seconds until the condition held; AssertionError if it never did."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it never happened"
        time.sleep(0.01)
    return time.monotonic() - started
