"""TGI's routes: ``/``, ``/generate_stream`` and ``/info``; and its answers to ``/generate``."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import detinfer
from detinfer.params import MAX_N, MAX_STOP_STRINGS
from detinfer.server.api.bodies.strict import parse_body
from detinfer.server.api.openapi import EVENTS, answered, body_of, failures, streamed
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
from detinfer.server.errors import Failure, speak
from detinfer.server.generation import Job, cache_salt, digest_header, gather, run_jobs
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.http.sse import EventStream, event
from detinfer.server.limits import MAX_PROMPTS
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()

_EVENTS = "server-sent events, one a token; the last has `generated_text`"
_FAILURES = failures(400, 401, 408, 413, 429, 500, 503, 504, model=TGIError)


class _Stream(EventStream):
    end = b""  # a TGI client knows no [DONE]

    @staticmethod
    def failure_payload(failure: Failure) -> dict[str, Any]:
        return tgi_failure(failure)


@router.post(
    "/",
    response_model=None,
    responses={
        **streamed(list[TGIResponse], f"A list of the one answer; with `stream` {_EVENTS}"),
        **_FAILURES,
    },
    openapi_extra=body_of(TGIRequest),
)
async def generate_or_stream(request: Request) -> Response:
    """Generate from raw text, as Text Generation Inference does, whole or in a stream."""
    speak(request, tgi_failure)
    service: Service = request.app.state.service
    service.ready_engine()
    body = parse_body(TGIRequest, await request.body())
    return await answer_tgi(request, body, bool(body.stream), as_list=True)


@router.post(
    "/generate_stream",
    response_model=None,
    responses={
        200: {"description": _EVENTS.capitalize(), "content": EVENTS},
        **_FAILURES,
    },
    openapi_extra=body_of(TGIRequest),
)
async def generate_stream(request: Request) -> Response:
    """Generate from raw text in a stream, as Text Generation Inference does."""
    speak(request, tgi_failure)
    service: Service = request.app.state.service
    service.ready_engine()
    body = parse_body(TGIRequest, await request.body())
    return await answer_tgi(request, body, stream=True)


@router.get("/info", response_model=None, responses={**answered(Told), **failures(401, 503)})
async def info(request: Request) -> Response:
    """Return what is served and its limits, in TGI's words."""
    service: Service = request.app.state.service
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


async def answer_tgi(
    request: Request, body: TGIRequest, stream: bool, as_list: bool = False
) -> Response:
    """Return the answer to a body; ``as_list`` makes a list of a single one too."""
    service: Service = request.app.state.service
    call = tgi_call(body, stream, service.default_deterministic)
    salt = cache_salt(request)
    headers = {"x-detinfer-deterministic": str(call.params.deterministic).lower()}
    if stream:
        return _Stream(_events(service, call, salt), headers)
    answers = await until_disconnect(request.receive, _answers(service, call, salt))
    values = tgi_values(call, answers)
    headers |= digest_header([str(value["digest"]) for value in values])
    return json_response(values if call.many or as_list else values[0], headers=headers)


async def _answers(service: Service, call: TGICall, salt: str) -> list[TGIAnswer]:
    with service.answering():
        jobs, answers = await _start(service, call, salt)
        await gather(run_jobs(service.ready_engine(), jobs), answers)
    return answers


async def _events(service: Service, call: TGICall, salt: str) -> AsyncGenerator[bytes, None]:
    with service.answering():
        jobs, [answer] = await _start(service, call, salt)
        async with aclosing(run_jobs(service.ready_engine(), jobs)) as batches:
            async for batch in batches:
                for _, output in batch:
                    if chunks := [event(value) for value in answer.events(output)]:
                        yield b"".join(chunks)


async def _start(
    service: Service, call: TGICall, salt: str
) -> tuple[Sequence[Job], list[TGIAnswer]]:
    """Return the jobs, and the answers that their outputs are to be put in."""
    engine = service.ready_engine()
    jobs = await call.jobs(engine, f"gen-{uuid.uuid4().hex}", salt)
    prompts = [str(prompt) for prompt in call.prompts for _ in range(call.params.n)]
    return jobs, [
        TGIAnswer(call, job, prompt, engine) for job, prompt in zip(jobs, prompts, strict=True)
    ]
