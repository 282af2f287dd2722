import asyncio
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustclip.errors import DeadlineExceeded
from service.batching import Batcher, Encoded, Pass

LATER = 30.0


class Recorder:
    """A run that doubles what it gets, can be held up, fails on a poisoned value, and remembers its
    batches.
    """

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, lane: str, pixels: Tensor, seeds: Tensor) -> Pass:
        assert self.gate.wait(5)
        self.batches.append((lane, len(pixels)))
        if bool((pixels < 0).any()):
            raise ValueError("poisoned")
        return Pass(pixels.flatten(1) * 2 + seeds[:, None], 0.0, 0.0)


def run(
    work: Callable[[Batcher[str], Recorder], object], *, max_batch: int = 4, dropped: list[str] | None = None
) -> Recorder:
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(
        recorder, max_batch=max_batch, on_drop=(dropped if dropped is not None else []).append
    )
    batcher.start()
    try:
        asyncio.run(work(batcher, recorder))
    finally:
        recorder.gate.set()
        batcher.stop()
    return recorder


def ask(
    batcher: Batcher[str], value: float, *, lane: str = "a", seconds: float = LATER
) -> "asyncio.Task[Encoded]":
    return asyncio.ensure_future(
        batcher.encode(lane, torch.full((1, 1, 1), value), 0, deadline=time.monotonic() + seconds)
    )


async def all_queued() -> None:
    await asyncio.sleep(0.05)


def test_what_waits_becomes_one_batch_up_to_the_limit() -> None:
    async def work(batcher: Batcher[str], recorder: Recorder) -> None:
        recorder.gate.clear()
        tasks = [ask(batcher, 0)]
        await all_queued()  # the first is being computed, alone
        tasks += [ask(batcher, value) for value in range(1, 7)]
        await all_queued()
        recorder.gate.set()
        results = await asyncio.gather(*tasks)
        assert [float(result.features) for result in results] == [0, 2, 4, 6, 8, 10, 12]
        assert [result.batch for result in results] == [1, 4, 4, 4, 4, 2, 2]

    assert run(work).batches == [("a", 1), ("a", 4), ("a", 2)]


def test_an_idle_batcher_does_not_wait_for_company() -> None:
    async def work(batcher: Batcher[str], recorder: Recorder) -> None:
        assert (await ask(batcher, 1)).queue_seconds < 1.0

    assert run(work).batches == [("a", 1)]


def test_lanes_never_mix_and_the_oldest_goes_first() -> None:
    async def work(batcher: Batcher[str], recorder: Recorder) -> None:
        recorder.gate.clear()
        first = ask(batcher, 0)
        await all_queued()
        rest = [ask(batcher, 1, lane="b"), ask(batcher, 2, lane="a"), ask(batcher, 3, lane="b")]
        await all_queued()
        recorder.gate.set()
        await asyncio.gather(first, *rest)

    assert run(work).batches == [("a", 1), ("b", 2), ("a", 1)]


def test_a_poisoned_picture_fails_alone() -> None:
    async def work(batcher: Batcher[str], recorder: Recorder) -> None:
        recorder.gate.clear()
        tasks = [ask(batcher, 0)]
        await all_queued()
        tasks += [ask(batcher, value) for value in (1, -1, 2)]
        await all_queued()
        recorder.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(outcome, ValueError) for outcome in outcomes] == [False, False, True, False]

    run(work)


def test_what_nobody_waits_for_is_not_computed() -> None:
    dropped: list[str] = []

    async def work(batcher: Batcher[str], recorder: Recorder) -> None:
        recorder.gate.clear()
        first = ask(batcher, 0)
        await all_queued()
        gone, late, wanted = ask(batcher, 1), ask(batcher, 2, seconds=0.0), ask(batcher, 3)
        await all_queued()
        gone.cancel()
        await all_queued()
        recorder.gate.set()
        await asyncio.gather(first, wanted)
        with pytest.raises(DeadlineExceeded):
            await late

    assert run(work, dropped=dropped).batches == [("a", 1), ("a", 1)]
    assert sorted(dropped) == ["client-gone", "deadline-exceeded"]


@pytest.mark.parametrize("max_batch", [1, 2, 32])
def test_no_batch_exceeds_its_limit_and_all_are_answered(max_batch: int) -> None:
    async def work(batcher: Batcher[str], recorder: Recorder) -> None:
        results = await asyncio.gather(*(ask(batcher, value) for value in range(40)))
        assert [float(result.features) for result in results] == [2.0 * value for value in range(40)]

    assert max(size for _, size in run(work, max_batch=max_batch).batches) <= max_batch


def test_stopping_finishes_what_was_accepted() -> None:
    recorder = Recorder()
    batcher: Batcher[str] = Batcher(recorder, max_batch=1)
    batcher.start()

    async def work() -> None:
        recorder.gate.clear()
        tasks = [ask(batcher, value) for value in range(3)]
        await all_queued()
        stopping = asyncio.ensure_future(asyncio.to_thread(batcher.stop))
        recorder.gate.set()
        await asyncio.gather(*tasks)
        await stopping

    asyncio.run(work())
    assert not batcher.alive
