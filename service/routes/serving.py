"""What every route asks for: the service that it belongs to."""

from typing import Annotated, TypeAlias

from fastapi import Depends
from starlette.requests import Request

from service.startup import Service


async def _service(request: Request) -> Service:  # async: anything else would wait for a thread
    return request.app.state.service


Serving: TypeAlias = Annotated[Service, Depends(_service)]
