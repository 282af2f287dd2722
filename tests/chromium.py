"""A headless Chromium for tests, spoken to over its debugging socket: what a page really does, and how it
really looks.
"""

import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

_SECONDS = 60
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--remote-debugging-port=0",
    ),
)


class Tab:
    """One page. `faults` are what it logged and what it tried to load from elsewhere."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.faults: list[str] = []
        for domain in ("Page", "Log", "Network", "Runtime"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def open(self, page: Path, *, width: int = 1200, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.faults.clear()
        self.send("Page.navigate", url=page.as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._socket.recv(timeout=_SECONDS))
        params = message.get("params", {})
        match message.get("method"):
            case "Log.entryAdded":
                self.faults.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.faults.append(json.dumps(params))
            case "Network.requestWillBeSent" if not params["request"]["url"].startswith(("data:", "file:")):
                self.faults.append(params["request"]["url"])
            case _:
                pass
        return message


@contextlib.contextmanager
def browsing(folder: Path) -> Generator[Tab]:
    """A tab of a browser that keeps its files in `folder`; the test is skipped where no Chromium is
    installed.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (on Debian: apt install chromium)")
    process = subprocess.Popen(
        [program, *_QUIET, f"--user-data-dir={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        started, port_file = time.monotonic(), folder / "DevToolsActivePort"
        while not (port_file.exists() and port_file.read_text().strip()):
            assert process.poll() is None, "Chromium ended"
            assert time.monotonic() - started < _SECONDS, "Chromium did not start"
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        pages = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False, timeout=_SECONDS).json()
        address = next(each["webSocketDebuggerUrl"] for each in pages if each["type"] == "page")
        with connect(address, max_size=None, proxy=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(timeout=_SECONDS)
