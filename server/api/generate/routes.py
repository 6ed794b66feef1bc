"""Our own routes: ``/generate`` and what a client asks before and around it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

import detinfer
from detinfer.server.api.bodies.strict import read_json, validated
from detinfer.server.api.generate.body import (
    GenerateRequest,
    GenerateResponse,
    NativeCall,
    to_call,
)
from detinfer.server.api.generate.dialects import DIALECTS, dialect_of
from detinfer.server.api.openapi import answered, body_of, failures, streamed
from detinfer.server.api.sglang.body import SGLangRequest, SGLangResponse
from detinfer.server.api.sglang.routes import answer_sglang
from detinfer.server.api.status import ModelCard, ModelList, Ready, Told, Version
from detinfer.server.api.tgi.body import TGIError, TGIRequest, TGIResponse, tgi_failure
from detinfer.server.api.tgi.routes import answer_tgi
from detinfer.server.errors import ErrorResponse, model_not_found, speak
from detinfer.server.generation import (
    Answer,
    answer_value,
    cache_salt,
    digest_header,
    gather,
    logprob_values,
    run_jobs,
)
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.http.sse import EventStream, event
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()

_TOLD: dict[int | str, dict[str, Any]] = {**answered(Told), **failures(401, 503)}

_Answer = GenerateResponse | SGLangResponse | TGIResponse


@router.post(
    "/generate",
    response_model=None,
    responses={
        **streamed(
            _Answer | list[_Answer],
            "The answer; with `stream` server-sent events that end with `[DONE]`",
        ),
        **failures(400, 401, 408, 413, 429, 500, 503, 504, model=ErrorResponse | TGIError),
    },
    openapi_extra=body_of(*DIALECTS),
)
async def generate(request: Request) -> Response:
    """Generate from raw text or token ids, for one prompt or a list, in the body's dialect."""
    service: Service = request.app.state.service
    service.ready_engine()
    value = read_json(await request.body())
    dialect = dialect_of(value)
    if dialect is TGIRequest:
        speak(request, tgi_failure)
        tgi = validated(TGIRequest, value)
        return await answer_tgi(request, tgi, bool(tgi.stream))
    if dialect is SGLangRequest:
        return await answer_sglang(request, validated(SGLangRequest, value))
    return await _answer(request, validated(GenerateRequest, value))


async def _answer(request: Request, body: GenerateRequest) -> Response:
    service: Service = request.app.state.service
    engine = service.ready_engine()
    call = to_call(body, service.default_deterministic)
    salt = cache_salt(request)
    headers = {"x-detinfer-deterministic": str(call.params.deterministic).lower()}
    if call.stream:
        return EventStream(_events(service, call, salt), headers)
    answers = await until_disconnect(request.receive, _answers(service, call, salt))
    values = [answer.value(engine.info.system_fingerprint) for answer in answers]
    headers |= digest_header([str(value["digest"]) for value in values])
    return json_response(values if call.many else values[0], headers=headers)


async def _answers(service: Service, call: NativeCall, salt: str) -> list[Answer]:
    with service.answering():
        engine = service.ready_engine()
        jobs = await call.jobs(engine, f"gen-{uuid.uuid4().hex}", salt)
        answers = [Answer() for _ in jobs]
        await gather(run_jobs(engine, jobs), answers)
    return answers


async def _events(service: Service, call: NativeCall, salt: str) -> AsyncGenerator[bytes, None]:
    with service.answering():
        engine = service.ready_engine()
        jobs = await call.jobs(engine, f"gen-{uuid.uuid4().hex}", salt)
        fingerprint = engine.info.system_fingerprint
        async with aclosing(run_jobs(engine, jobs)) as batches:
            async for batch in batches:
                chunks = []
                for index, output in batch:
                    place = {"index": index} if call.many else {}
                    if output.token_ids or output.text:
                        delta = {**place, "text": output.text, "output_ids": output.token_ids}
                        if output.logprobs is not None:
                            delta["logprobs"] = logprob_values(output.logprobs)
                        chunks.append(event(delta))
                    if output.finish_reason is not None:
                        empty: list[Any] | None = None if output.logprobs is None else []
                        last = answer_value(output, "", [], empty, fingerprint)
                        chunks.append(event({**place, **last}))
                if chunks:
                    yield b"".join(chunks)


@router.get("/health", response_model=None, responses={**answered(Ready), **failures(503)})
@router.get(
    "/ready",
    operation_id="ready",
    response_model=None,
    responses={**answered(Ready), **failures(503)},
)
async def health(request: Request) -> Response:
    """200 when requests are served; 503 while loading, draining or dead."""
    request.app.state.service.ready_engine()
    return json_response({"status": "ready"})


@router.get("/version", response_model=None, responses={**answered(Version), **failures(401)})
async def version() -> Response:
    """Return the server's version."""
    return json_response({"version": detinfer.__version__})


@router.get("/server_info", response_model=None, responses=_TOLD)
@router.get(
    "/get_server_info",
    operation_id="get_server_info",
    response_model=None,
    responses=_TOLD,
)
async def server_info(request: Request) -> Response:
    """Return what is served, what its bits depend on, and how busy it is."""
    service: Service = request.app.state.service
    engine = service.ready_engine()
    info = engine.info
    return json_response(
        {
            "version": detinfer.__version__,
            "state": service.state,
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
                "numerics": info.profile,
                "allow_fast": info.allow_fast,
                "default_deterministic": service.default_deterministic,
            },
            "generation_defaults_not_applied": info.generation_defaults,
            "stats": await engine.stats(),
        }
    )


@router.get(
    "/v1/models", response_model=None, responses={**answered(ModelList), **failures(401, 503)}
)
async def models(request: Request) -> Response:
    """Return the one model served."""
    return json_response({"object": "list", "data": [_model_card(request.app.state.service)]})


@router.get(
    "/v1/models/{model_id:path}",
    response_model=None,
    responses={
        **answered(ModelCard),
        **failures(401, 404, 503),
        "4XX": {"model": ErrorResponse},
    },
)
async def model(request: Request, model_id: str) -> Response:
    """One model by its name."""
    card = _model_card(request.app.state.service)
    if model_id != card["id"]:
        return model_not_found(model_id, str(card["id"])).response()
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
