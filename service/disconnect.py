"""Work for a client that may leave."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from service.problems import Problem

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; a client that leaves cancels the work. Only after the body was read: what arrives
    now can only be the goodbye.
    """
    task = asyncio.ensure_future(work)
    goodbye = asyncio.ensure_future(_goodbye(request))
    try:
        await asyncio.wait({task, goodbye}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Problem("client-gone", "the client left before its answer.")
    finally:
        for pending in (task, goodbye):
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await pending


async def _goodbye(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
