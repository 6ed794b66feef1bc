"""``GET /metrics``."""

from __future__ import annotations

import os

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from detinfer.server.api.openapi import failures, plain
from detinfer.server.metrics.exposition import CONTENT_TYPE, exposition
from detinfer.server.service import Service

router = APIRouter()


@router.get(
    "/metrics", responses={**plain("Prometheus metrics, in its text format"), **failures(401)}
)
async def metrics(request: Request) -> Response:
    """Return what the server has done and how busy it is; answers in every state."""
    service = Service.of(request)
    engine = service.engine
    name, info, stats = service.config.served_model_name or "", None, {}
    processes = {"server": os.getpid()}
    if engine is not None:
        name, info, stats = service.model_id(engine), engine.info, await engine.stats()
        if engine.state != "dead":
            processes["engine"] = engine.pid
    solving: dict[str, int] = {}
    if service.solver is not None:
        solving = await service.solver.stats()
        if service.solver.state != "dead":
            processes["solver"] = service.solver.pid
    prefix = service.config.metrics_prefix
    page = exposition(service.metrics, prefix, name, info, stats, processes, solving)
    return Response(page, headers={"content-type": CONTENT_TYPE})
