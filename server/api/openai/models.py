"""OpenAI's ``/v1/models``: the language model that is served, and the solvers."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.solver_config import SolverModel
from detinfer.server.api.openapi import answered, failures
from detinfer.server.errors import ErrorResponse, ModelNotFoundError
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()


class ModelCard(BaseModel):
    """The language model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class SolverCard(BaseModel):
    """A solver that is served.

    Attributes:
        accuracy: share of the test puzzles solved exactly with verified halting, by its card; null
            where it has none.
        halting_step: at which it then ends, on average.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    task: str
    cells: int
    parameters: int
    accuracy: float | None
    halting_step: float | None
    system_fingerprint: str


class ModelList(BaseModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[ModelCard | SolverCard]


@router.get("/v1/models", responses={**answered(ModelList), **failures(401, 503)})
async def models(request: Request) -> Response:
    """Return what is served."""
    return json_response({"object": "list", "data": _cards(Service.of(request))})


@router.get(
    "/v1/models/{model_id:path}",
    responses={
        **answered(ModelCard | SolverCard),
        **failures(401, 404, 503),
        "4XX": {"model": ErrorResponse},
    },
)
async def model(request: Request, model_id: str) -> Response:
    """One model by its name."""
    cards = {str(card["id"]): card for card in _cards(Service.of(request))}
    if model_id not in cards:
        raise ModelNotFoundError(model_id, *cards)
    return json_response(cards[model_id])


def _cards(service: Service) -> list[dict[str, Any]]:
    service.check_ready()
    cards = []
    if service.engine is not None:
        info, name = service.engine.info, service.model_id(service.engine)
        cards.append(
            {
                **_named(service, name, info.model_name),
                "max_model_len": info.max_model_len,
            }
        )
    if service.solver is not None:
        for name, solver in service.solver.info.models.items():
            cards.append({**_named(service, name, name), **_of_solver(solver)})
    return cards


def _named(service: Service, name: str, root: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.started_at,
        "owned_by": "detinfer",
        "root": root,
        "parent": None,
    }


def _of_solver(solver: SolverModel) -> dict[str, Any]:
    return {
        "task": solver.task,
        "cells": solver.cells,
        "parameters": solver.parameters,
        "accuracy": solver.card.get("verified"),
        "halting_step": solver.card.get("halting_step"),
        "system_fingerprint": solver.system_fingerprint,
    }
