"""``GET /metrics``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from detinfer.server.metrics import CONTENT_TYPE
from detinfer.server.openapi import failures
from detinfer.server.service import Service

router = APIRouter()


@router.get(
    "/metrics",
    response_model=None,
    responses={
        200: {
            "description": "Prometheus metrics, in its text format",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **failures(401),
    },
)
async def metrics(request: Request) -> Response:
    """What the server has done and how busy it is; answers in every state."""
    service: Service = request.app.state.service
    engine = service.engine
    name, stats = service.config.served_model_name or "", {}
    if engine is not None:
        name, stats = service.model_id(engine), await engine.stats()
    page = service.metrics.exposition(name, stats)
    return Response(page, headers={"content-type": CONTENT_TYPE})
