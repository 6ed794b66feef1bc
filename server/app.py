"""The HTTP application: routes, middleware and the OpenAPI description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

import detinfer
from detinfer.config import ServerConfig
from detinfer.server import routes_native
from detinfer.server.auth import ApiKeyMiddleware
from detinfer.server.errors import install_error_handlers
from detinfer.server.limits import BodyLimitMiddleware
from detinfer.server.protocol_native import GenerateRequest
from detinfer.server.request_id import RequestIdMiddleware
from detinfer.server.service import Service

if TYPE_CHECKING:
    from detinfer.engine.async_engine import AsyncEngine


def create_app(
    engine: AsyncEngine | None, config: ServerConfig, *, default_deterministic: bool = True
) -> FastAPI:
    """Build the application around ``engine``.

    With None the application answers 503 ("loading") until ``app.state.service.engine`` is set.

    Args:
        engine: serves the requests.
        config: keys, names and limits.
        default_deterministic: what a request gets that does not say.
    """
    app = _DescribedApp(
        title="detinfer",
        summary="LLM inference with bitwise reproducible answers",
        version=detinfer.__version__,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = Service(engine, config, default_deterministic)
    install_error_handlers(app)
    app.include_router(routes_native.router)
    # The last one added is the outermost: ids first, then keys, then a look at the body.
    app.add_middleware(BodyLimitMiddleware)
    app.add_middleware(ApiKeyMiddleware, keys=config.api_keys)
    app.add_middleware(RequestIdMiddleware)
    return app


class _DescribedApp(FastAPI):
    """FastAPI whose description includes the bodies that ``parse_body`` reads by itself."""

    def openapi(self) -> dict[str, Any]:
        """The description, made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            _, bodies = models_json_schema(
                [(GenerateRequest, "validation")], ref_template="#/components/schemas/{model}"
            )
            schema["components"]["schemas"].update(bodies["$defs"])
        return super().openapi()
