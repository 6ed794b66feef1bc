"""OpenAI's ``/v1/models``: the one that is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from detinfer.server.api.openapi import answered, failures
from detinfer.server.errors import ErrorResponse, ModelNotFoundError
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(BaseModel):
    """All models that are served: one."""

    object: Literal["list"]
    data: list[ModelCard]


@router.get("/v1/models", responses={**answered(ModelList), **failures(401, 503)})
async def models(request: Request) -> Response:
    """Return the one model served."""
    return json_response({"object": "list", "data": [_model_card(Service.of(request))]})


@router.get(
    "/v1/models/{model_id:path}",
    responses={**answered(ModelCard), **failures(401, 404, 503), "4XX": {"model": ErrorResponse}},
)
async def model(request: Request, model_id: str) -> Response:
    """One model by its name."""
    card = _model_card(Service.of(request))
    if model_id != card["id"]:
        raise ModelNotFoundError(model_id, str(card["id"]))
    return json_response(card)


def _model_card(service: Service) -> Mapping[str, Any]:
    engine = service.ready_engine()
    name = service.model_id(engine)
    return {
        "id": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "detinfer",
        "root": engine.info.model_name,
        "parent": None,
        "max_model_len": engine.info.max_model_len,
    }
