"""One thread takes the pictures that wait, runs them as a batch, and takes again. It never waits for a batch
to fill up.

Lanes keep apart what can't share a pass: pictures under different visual prompts or defenses. Randomness
comes from row seeds, so a picture's result does not depend on the others in its batch.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from robustclip.errors import DeadlineExceeded
from robustclip.types import Features, Pixels, Seeds

LaneT = TypeVar("LaneT")


class Pass(NamedTuple):
    """What a lane's run gives back: features [B, E] and how long the parts took."""

    features: Features
    defense_seconds: float
    infer_seconds: float


class Encoded(NamedTuple):
    """One picture's features [E], and its share in the pass that made them."""

    features: Tensor
    queue_seconds: float
    defense_seconds: float
    infer_seconds: float
    batch: int


@dataclass(eq=False)
class _Ticket(Generic[LaneT]):
    lane: LaneT
    pixels: Tensor
    seed: int
    deadline: float
    future: asyncio.Future[Encoded]
    loop: asyncio.AbstractEventLoop
    arrived: float = field(default_factory=time.monotonic)


class Batcher(Generic[LaneT]):
    """Turns single pictures into batches.

    `run(lane, pixels, seeds)` computes a batch; `on_batch(size)` is called after each; `on_drop(reason)` for
    each picture that nobody waits for any more. A batch that fails is repeated picture by picture, so that
    only the picture at fault fails.
    """

    def __init__(
        self,
        run: Callable[[LaneT, Pixels, Seeds], Pass],
        *,
        max_batch: int,
        on_batch: Callable[[int], None] = lambda size: None,
        on_drop: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._on_drop = on_drop
        self._condition = threading.Condition()
        self._lanes: dict[LaneT, deque[_Ticket[LaneT]]] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Compute what waits, then return."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def encode(self, lane: LaneT, pixels: Tensor, seed: int, *, deadline: float) -> Encoded:
        """Features of one picture [3, S, S]. Raises DeadlineExceeded if its turn comes after `deadline`
        (time.monotonic).
        """
        loop = asyncio.get_running_loop()
        ticket = _Ticket(lane, pixels, seed, deadline, loop.create_future(), loop)
        with self._condition:
            self._lanes.setdefault(lane, deque()).append(ticket)
            self._condition.notify()
        return await ticket.future

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._lanes or self._stopping)
                if not self._lanes:
                    return
                tickets = self._take()
            tickets = [ticket for ticket in tickets if self._wanted(ticket)]
            if tickets:
                self._answer(tickets)

    def _take(self) -> list[_Ticket[LaneT]]:
        """Up to a batch from the lane whose first picture has waited longest."""
        lane = min(self._lanes, key=lambda lane: self._lanes[lane][0].arrived)
        waiting = self._lanes[lane]
        taken = [waiting.popleft() for _ in range(min(len(waiting), self._max_batch))]
        if not waiting:
            del self._lanes[lane]
        return taken

    def _wanted(self, ticket: _Ticket[LaneT]) -> bool:
        if ticket.future.cancelled():
            self._on_drop("client-gone")
            return False
        if time.monotonic() > ticket.deadline:
            self._on_drop("deadline-exceeded")
            _settle([(ticket, DeadlineExceeded("the time was over before the image's turn came."))])
            return False
        return True

    def _answer(self, tickets: Sequence[_Ticket[LaneT]]) -> None:
        try:
            _settle(self._computed(tickets))
        except Exception as error:
            if len(tickets) == 1:
                _settle([(tickets[0], error)])
            else:
                for ticket in tickets:
                    self._answer([ticket])

    def _computed(
        self, tickets: Sequence[_Ticket[LaneT]]
    ) -> "list[tuple[_Ticket[LaneT], Encoded | Exception]]":
        started = time.monotonic()
        seeds = torch.tensor([ticket.seed for ticket in tickets], dtype=torch.int64)
        result = self._run(tickets[0].lane, torch.stack([ticket.pixels for ticket in tickets]), seeds)
        self._on_batch(len(tickets))
        return [
            (
                ticket,
                Encoded(
                    features,
                    started - ticket.arrived,
                    result.defense_seconds,
                    result.infer_seconds,
                    len(tickets),
                ),
            )
            for ticket, features in zip(tickets, result.features, strict=True)
        ]


def _settle(outcomes: "Sequence[tuple[_Ticket[LaneT], Encoded | Exception]]") -> None:
    """Deliver on the event loop, all together: waking it up costs more than the rest."""

    def deliver() -> None:
        for ticket, outcome in outcomes:
            if ticket.future.done():
                continue
            if isinstance(outcome, Exception):
                ticket.future.set_exception(outcome)
            else:
                ticket.future.set_result(outcome)

    loop = outcomes[0][0].loop
    if not loop.is_closed():
        loop.call_soon_threadsafe(deliver)
