"""Follows a store's pointers by polling: change notifications are unreliable on mounted volumes.

A few small reads cost nothing.
"""

import logging
import threading
from collections.abc import Callable

from prompts_store.manifest import Ref
from prompts_store.store import PromptStore

_log = logging.getLogger(__name__)


class Watcher:
    """Calls `on_change(active)` from its thread: at the start, and when a CLIP's active versions change.

    `on_change` loads and swaps; polls wait for it. If it returns False it is called again at the next poll (a
    pointer may arrive before the file that it names). If it raises, that is logged, and it is called again at
    the next change. A name missing from `active` has no readable pointer now.
    """

    def __init__(
        self,
        store: PromptStore,
        fingerprint: str,
        on_change: Callable[[dict[str, Ref]], bool | None],
        *,
        interval_seconds: float = 0.5,
    ) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._on_change = on_change
        self._interval_seconds = interval_seconds
        self._seen: dict[str, Ref] | None = None
        self._readable = True
        self._polling = threading.Lock()  # a request for a rescan also calls `poll_once`
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Poll until `stop`. A watcher is started once."""
        self._thread = threading.Thread(target=self._run, name="prompt-store-watcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return when the thread has ended, after the `on_change` that may be running."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def poll_once(self) -> bool:
        """Poll now; returns whether something had changed and `on_change` was called."""
        with self._polling:
            try:
                active = self._store.active(self._fingerprint)
            except OSError:
                if self._readable:
                    _log.exception("prompt store %s can't be read; what is served stays", self._store.root)
                self._readable = False
                return False
            self._readable = True
            if active == self._seen:
                return False
            self._seen = active
            try:
                if self._on_change(active) is False:
                    self._seen = None
            except Exception:
                _log.exception("following the prompt store failed; what is served stays")
            return True

    def _run(self) -> None:
        while True:
            self.poll_once()
            if self._stopped.wait(self._interval_seconds):
                return
