"""The HTTP application: routes, middleware and the OpenAPI description."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

import detinfer
from detinfer.config import ServerConfig
from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.async_solver import AsyncSolver
from detinfer.server.api import check, metrics, page, status, tokenizer, verify
from detinfer.server.api.bodies.receipt import Receipt
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.check import CheckRequest
from detinfer.server.api.generate import routes as generate
from detinfer.server.api.generate.body import GenerateRequest
from detinfer.server.api.openai import embeddings, models, score
from detinfer.server.api.openai import routes as openai
from detinfer.server.api.openai.chat_body import ChatCompletionRequest
from detinfer.server.api.openai.completion_body import CompletionRequest
from detinfer.server.api.openai.embeddings import EmbeddingRequest
from detinfer.server.api.openai.score import ScoreRequest
from detinfer.server.api.openapi import drop_json_of_others, drop_null_defaults
from detinfer.server.api.responses import routes as responses
from detinfer.server.api.responses.body import ResponsesRequest
from detinfer.server.api.sglang import routes as sglang
from detinfer.server.api.sglang.body import SGLangRequest
from detinfer.server.api.solve import routes as solve
from detinfer.server.api.solve.body import SolveRequest
from detinfer.server.api.tgi import routes as tgi
from detinfer.server.api.tgi.body import TGIRequest
from detinfer.server.api.tokenizer import DetokenizeRequest, TokenizeRequest
from detinfer.server.errors import CatchAllMiddleware, install_error_handlers
from detinfer.server.http.auth import ApiKeyMiddleware
from detinfer.server.http.cors import CorsMiddleware
from detinfer.server.http.head import HeadMiddleware
from detinfer.server.http.observation import ObservationMiddleware
from detinfer.server.http.request_id import RequestIdMiddleware
from detinfer.server.limits import LimitsMiddleware
from detinfer.server.service import LANGUAGE_MODEL, Kind, Service


def create_app(
    engine: AsyncEngine | None,
    config: ServerConfig,
    *,
    default_deterministic: bool = True,
    solver: AsyncSolver | None = None,
    serves: Collection[Kind] = LANGUAGE_MODEL,
) -> FastAPI:
    """Build the application around what serves the requests.

    What is in ``serves`` but None answers 503 ("loading") until ``app.state.service`` has it.

    Args:
        engine: the language model.
        config: keys, names and limits.
        default_deterministic: what a request gets that does not say.
        solver: the solvers.
        serves: what there is or will be; routes of the other kind answer 404.
    """
    app = _DescribedApp(
        title="detinfer",
        summary="LLM inference with bitwise reproducible answers",
        version=detinfer.__version__,
        docs_url=None,  # server/api/page.py has one that loads nothing from elsewhere
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,  # what generated clients call it
        redirect_slashes=False,
    )
    app.state.service = Service(engine, config, default_deterministic, solver, serves)
    install_error_handlers(app)
    dialects = (generate, openai, responses, embeddings, score, sglang, tgi, solve)
    for room in (*dialects, models, tokenizer, check, verify, status, metrics, page):
        app.include_router(room.router)
    # The last one added is the outermost. What refuses stands inside of what every answer needs:
    # its id, its line in the log, and what lets a page's script read it.
    app.add_middleware(HeadMiddleware)
    app.add_middleware(LimitsMiddleware, config=config)
    app.add_middleware(
        ApiKeyMiddleware,
        keys=config.api_keys,
        share_prefix_cache=config.share_prefix_cache,
        public=page.PUBLIC_PATHS,
    )
    app.add_middleware(CatchAllMiddleware)
    if config.cors_origins:
        app.add_middleware(CorsMiddleware, origins=config.cors_origins)
    app.add_middleware(ObservationMiddleware, metrics=app.state.service.metrics)
    app.add_middleware(RequestIdMiddleware)
    return app


_BODIES: list[type[StrictBody]] = [
    GenerateRequest,
    CompletionRequest,
    ChatCompletionRequest,
    ResponsesRequest,
    EmbeddingRequest,
    ScoreRequest,
    SGLangRequest,
    TGIRequest,
    TokenizeRequest,
    DetokenizeRequest,
    CheckRequest,
    SolveRequest,
    Receipt,
]


class _DescribedApp(FastAPI):
    """FastAPI whose description includes the bodies that ``parse_body`` reads by itself."""

    def openapi(self) -> dict[str, Any]:
        """Return the description, made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            _, bodies = models_json_schema(
                [(body, "validation") for body in _BODIES],
                ref_template="#/components/schemas/{model}",
            )
            schema["components"]["schemas"].update(bodies["$defs"])
            drop_json_of_others(schema)
            drop_null_defaults(schema)
        return super().openapi()
