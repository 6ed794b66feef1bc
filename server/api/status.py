"""What tells of the server: whether it is up, its version, what it serves and how busy it is."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

import detinfer
from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.async_solver import AsyncSolver
from detinfer.server.api.openapi import answered, failures
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()

Told = dict[str, Any]  # of which there is more than a client's types need


class Ready(BaseModel):
    """Requests are served."""

    status: Literal["ready"]


class Version(BaseModel):
    """The server's."""

    version: str


_TOLD: dict[int | str, dict[str, Any]] = {**answered(Told), **failures(401, 503)}


@router.get("/health", responses={**answered(Ready), **failures(503)})
@router.get("/ready", operation_id="ready", responses={**answered(Ready), **failures(503)})
async def health(request: Request) -> Response:
    """200 when requests are served; 503 while loading, draining or dead."""
    Service.of(request).check_ready()
    return json_response({"status": "ready"})


@router.get("/version", responses={**answered(Version), **failures(401)})
async def version() -> Response:
    """Return the server's version."""
    return json_response({"version": detinfer.__version__})


@router.get("/server_info", responses=_TOLD)
@router.get("/get_server_info", operation_id="get_server_info", responses=_TOLD)
async def server_info(request: Request) -> Response:
    """Return what is served, what its bits depend on, and how busy it is."""
    service = Service.of(request)
    service.check_ready()
    told: Told = {"version": detinfer.__version__, "state": service.state}
    if service.engine is not None:
        told |= await _language_model(service, service.engine)
    if service.solver is not None:
        told["solvers"] = await _solvers(service.solver)
    return json_response(told)


async def _language_model(service: Service, engine: AsyncEngine) -> Told:
    info = engine.info
    return {
        "model": service.model_id(engine),
        "system_fingerprint": info.system_fingerprint,
        "fingerprint": info.fingerprint,
        "engine": {
            "model_name": info.model_name,
            "max_model_len": info.max_model_len,
            "max_num_seqs": info.max_num_seqs,
            "vocab_size": info.vocab_size,
            "eos_token_ids": list(info.eos_token_ids),
            "num_pages": info.num_pages,
            "plan": info.plan,
            "dtype": info.dtype,
            "kv_cache_dtype": info.kv_cache_dtype,
            "numerics": info.profile,
            "allow_fast": info.allow_fast,
            "default_deterministic": service.default_deterministic,
        },
        "generation_defaults_not_applied": info.generation_defaults,
        "stats": await engine.stats(),
    }


async def _solvers(solver: AsyncSolver) -> Told:
    info = solver.info
    return {
        "models": {
            name: {
                "task": model.task,
                "system_fingerprint": model.system_fingerprint,
                "fingerprint": model.fingerprint,
            }
            for name, model in info.models.items()
        },
        "max_num_seqs": info.max_num_seqs,
        "allow_fast": info.allow_fast,
        "stats": await solver.stats(),
    }
