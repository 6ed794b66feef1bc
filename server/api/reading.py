"""What the routes that read a body begin with."""

from __future__ import annotations

from starlette.requests import Request

from detinfer.engine.async_engine import AsyncEngine
from detinfer.server.api.bodies.strict import Body, parse_body
from detinfer.server.errors import ModelNotFoundError
from detinfer.server.service import Service

# What clients of TGI, which looks at no model's name, send where their user gave none.
_NO_MODEL = ("tgi", "dummy")


async def read(request: Request, model: type[Body]) -> tuple[Service, AsyncEngine, Body]:
    """Return the server, the engine that is to answer, and the body.

    Raises:
        UnavailableError: nothing can be served now; told before the body is read.
        RequestError: as ``parse_body``.
        ModelNotFoundError: the body names a model that is not the one served.
    """
    service = Service.of(request)
    engine = service.ready_engine()
    body = parse_body(model, await request.body())
    named, served = getattr(body, "model", None), service.model_id(engine)
    if named not in (None, served, *_NO_MODEL):
        raise ModelNotFoundError(named, served)
    return service, engine, body
