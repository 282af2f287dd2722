import logging
import shutil
import threading
from pathlib import Path

import pytest
from prompt_sets import learned_set

from prompts_store.manifest import Ref
from prompts_store.store import PromptStore
from prompts_store.watcher import Watcher
from robustclip.models.clip import Clip


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return PromptStore(tmp_path / "prompts")


def test_each_change_of_what_is_active_is_told_once(store: PromptStore, tiny: Clip) -> None:
    told: list[dict[str, Ref]] = []
    watcher = Watcher(store, tiny.fingerprint, told.append)
    one = store.publish(learned_set(tiny), activate=True)
    assert [watcher.poll_once() for _ in range(3)] == [True, False, False]
    two = store.publish(learned_set(tiny, seed=1))
    assert not watcher.poll_once()
    store.activate(two, tiny.fingerprint)
    assert watcher.poll_once()
    store.rollback("demo", tiny.fingerprint)
    watcher.poll_once()
    assert told == [{"demo": one}, {"demo": two}, {"demo": one}]


def test_sets_of_other_clips_change_nothing(store: PromptStore, tiny: Clip) -> None:
    watcher = Watcher(store, "f" * 64, lambda active: None)
    watcher.poll_once()
    store.publish(learned_set(tiny), activate=True)
    assert not watcher.poll_once()


def test_a_failing_callback_is_logged_and_called_again_at_the_next_change(
    store: PromptStore, tiny: Clip, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[dict[str, Ref]] = []

    def fail(active: dict[str, Ref]) -> None:
        calls.append(active)
        raise RuntimeError("no memory left")

    watcher = Watcher(store, tiny.fingerprint, fail)
    store.publish(learned_set(tiny), activate=True)
    with caplog.at_level(logging.ERROR):
        assert [watcher.poll_once() for _ in range(3)] == [True, False, False]
    assert len(caplog.records) == 1
    store.publish(learned_set(tiny, seed=1), activate=True)
    watcher.poll_once()
    assert len(calls) == 2


def test_a_callback_that_answers_false_is_asked_again(store: PromptStore, tiny: Clip) -> None:
    answers = iter([False, False, True])
    watcher = Watcher(store, tiny.fingerprint, lambda active: next(answers))
    assert [watcher.poll_once() for _ in range(4)] == [True, True, True, False]


def test_a_store_that_can_not_be_read_is_logged_once_and_followed_again(
    store: PromptStore, tiny: Clip, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Ref]] = []
    watcher = Watcher(store, tiny.fingerprint, told.append)
    ref = store.publish(learned_set(tiny), activate=True)

    def gone(fingerprint: str) -> dict[str, Ref]:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
        broken.setattr(store, "active", gone)
        assert [watcher.poll_once() for _ in range(3)] == [False, False, False]
    assert len(caplog.records) == 1
    watcher.poll_once()
    assert told == [{"demo": ref}]


def test_the_thread_follows_within_its_interval_and_ends_when_stopped(store: PromptStore, tiny: Clip) -> None:
    followed = threading.Event()
    told: list[tuple[dict[str, Ref], threading.Thread]] = []

    def follow(active: dict[str, Ref]) -> None:
        told.append((active, threading.current_thread()))
        if active:
            followed.set()

    watcher = Watcher(store, tiny.fingerprint, follow, interval_seconds=0.02)
    watcher.start()
    ref = store.publish(learned_set(tiny), activate=True)
    assert followed.wait(timeout=10)
    watcher.stop()
    active, thread = told[-1]
    assert active == {"demo": ref}
    assert thread.name == "prompt-store-watcher"
    assert not thread.is_alive()  # other tests' servers may have watchers of their own
    shutil.rmtree(store.root)
    assert told[-1][0] == {"demo": ref}


def test_stopping_a_watcher_that_never_started_is_fine(store: PromptStore, tiny: Clip) -> None:
    Watcher(store, tiny.fingerprint, lambda active: None).stop()
