"""TGI's routes: ``/``, ``/generate_stream`` and ``/info``; and its answers to ``/generate``."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import detinfer
from detinfer.engine.async_engine import AsyncEngine
from detinfer.params import MAX_N, MAX_STOP_STRINGS
from detinfer.server.api.openapi import EVENTS, answered, body_of, failures, streamed
from detinfer.server.api.reading import read
from detinfer.server.api.status import Told
from detinfer.server.api.tgi.body import (
    TGICall,
    TGIError,
    TGIRequest,
    TGIResponse,
    tgi_call,
    tgi_failure,
)
from detinfer.server.api.tgi.values import TGIAnswer, tgi_values
from detinfer.server.errors import speak
from detinfer.server.generation import Job
from detinfer.server.http.sse import EventStream
from detinfer.server.limits import MAX_PROMPTS
from detinfer.server.reply import Reply, Value
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()

_EVENTS = "server-sent events, one a token; the last has `generated_text`"
_FAILURES = failures(400, 401, 408, 413, 429, 500, 503, 504, model=TGIError)


@router.post(
    "/",
    responses={
        **streamed(list[TGIResponse], f"A list of the one answer; with `stream` {_EVENTS}"),
        **_FAILURES,
    },
    openapi_extra=body_of(TGIRequest),
)
async def generate_or_stream(request: Request) -> Response:
    """Generate from raw text, as Text Generation Inference does, whole or in a stream."""
    return await _answer(request, as_list=True)


@router.post(
    "/generate_stream",
    responses={200: {"description": _EVENTS.capitalize(), "content": EVENTS}, **_FAILURES},
    openapi_extra=body_of(TGIRequest),
)
async def generate_stream(request: Request) -> Response:
    """Generate from raw text in a stream, as Text Generation Inference does."""
    return await _answer(request, stream=True)


@router.get("/info", responses={**answered(Told), **failures(401, 503)})
async def info(request: Request) -> Response:
    """Return what is served and its limits, in TGI's words."""
    service = Service.of(request)
    engine = service.ready_engine()
    longest = engine.info.longest
    return json_response(
        {
            "model_id": service.model_id(engine),
            "model_sha": None,
            "model_dtype": engine.info.dtype,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": engine.capacity,
            "max_best_of": MAX_N,
            "max_stop_sequences": MAX_STOP_STRINGS,
            "max_input_tokens": longest - 1,
            "max_total_tokens": longest,
            "max_client_batch_size": MAX_PROMPTS,
            "router": "detinfer",
            "version": detinfer.__version__,
            "sha": None,
            "docker_label": None,
            "system_fingerprint": engine.info.system_fingerprint,
        }
    )


async def _answer(request: Request, stream: bool | None = None, as_list: bool = False) -> Response:
    speak(request, tgi_failure)
    service, _, body = await read(request, TGIRequest)
    stream = bool(body.stream) if stream is None else stream
    call = tgi_call(body, stream, service.default_deterministic, as_list)
    return await TGIReply(request, call).response()


class _Stream(EventStream):
    end = b""  # a TGI client knows no [DONE]
    failure_payload = staticmethod(tgi_failure)


class TGIReply(Reply[TGICall, TGIAnswer]):
    """TGI's answers to any of its routes."""

    stream = _Stream

    async def begin(self, engine: AsyncEngine, jobs: Sequence[Job]) -> Sequence[TGIAnswer]:
        """See ``Reply``."""
        prompts = [str(prompt) for prompt in self.call.prompts for _ in range(self.call.params.n)]
        return [
            TGIAnswer(self.call, job, prompt, engine)
            for job, prompt in zip(jobs, prompts, strict=True)
        ]

    def values(self) -> list[Value]:
        """See ``Reply``."""
        return tgi_values(self.call, self.answers)
