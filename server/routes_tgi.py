"""Text Generation Inference's stream: ``POST /generate_stream``, one event a token."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from detinfer.errors import RequestError
from detinfer.server.call import Call
from detinfer.server.generation import cache_salt, run_jobs
from detinfer.server.openapi import EVENTS, body_of, failures
from detinfer.server.protocol import StrictBody, Text, parse_body
from detinfer.server.protocol_native import GenerateRequest, TGIParameters, to_call
from detinfer.server.service import Service
from detinfer.server.sse import EventStream, event
from detinfer.server.token_text import TokenTexts, token_texts

if TYPE_CHECKING:
    from detinfer.engine.outputs import RequestOutput

router = APIRouter()


class TGIStreamParameters(TGIParameters):
    """A stream has its details whether they are asked for or not."""

    details: bool | None = Field(None, description="the last event has them either way")


class TGIStreamRequest(StrictBody):
    """The body of ``POST /generate_stream``."""

    inputs: Text
    parameters: TGIStreamParameters | None = None
    stream: bool | None = Field(None, description="ignored")


class _Stream(EventStream):
    end = b""  # a TGI client knows no [DONE]


@router.post(
    "/generate_stream",
    response_model=None,
    responses={
        200: {
            "description": "Server-sent events, one a token; the last has `generated_text`",
            "content": EVENTS,
        },
        **failures(400, 401, 408, 413, 429, 500, 503, 504),
    },
    openapi_extra=body_of(TGIStreamRequest),
)
async def generate_stream(request: Request) -> Response:
    """Generate from raw text, in the shape of Text Generation Inference."""
    service: Service = request.app.state.service
    service.ready_engine()
    body = parse_body(TGIStreamRequest, await request.body())
    native = GenerateRequest.model_construct(inputs=body.inputs, parameters=body.parameters)
    call = to_call(native, service.default_deterministic)
    if call.params.n > 1:
        raise RequestError(
            f"parameters.n: got {call.params.n}, expected 1: a stream has one answer",
            "parameters.n",
        )
    # Every event has its token's log-probability.
    call = replace(call, params=replace(call.params, logprobs=0))
    headers = {"x-detinfer-deterministic": str(call.params.deterministic).lower()}
    return _Stream(_events(service, call, cache_salt(request)), headers)


async def _events(service: Service, call: Call, salt: str) -> AsyncGenerator[bytes, None]:
    with service.answering():
        engine = service.ready_engine()
        jobs = await call.jobs(engine, f"gen-{uuid.uuid4().hex}", salt)
        eos = () if call.params.ignore_eos else engine.info.eos_token_ids
        answer = _Answer(token_texts(engine.tokenizer), eos)
        async with aclosing(run_jobs(engine, jobs)) as batches:
            async for batch in batches:
                for _, output in batch:
                    if chunks := [event(value) for value in answer.values(output)]:
                        yield b"".join(chunks)


class _Answer:
    """One answer, as its increments come."""

    def __init__(self, texts: TokenTexts, eos_token_ids: tuple[int, ...]) -> None:
        self._texts = texts
        self._eos = eos_token_ids
        self._parts: list[str] = []
        self._count = 0

    def values(self, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """An event for each token of an increment; the increment's text is the last one's."""
        self._parts.append(output.text)
        logprobs = output.logprobs or []
        for place, one in enumerate(logprobs, 1):
            self._count += 1
            last = place == len(logprobs)
            special = one.token_id in self._texts.special
            text = output.text if last else ""
            if special and not text:
                text = self._texts.text_of(one.token_id)
            ended = last and output.finish_reason is not None
            yield {
                "index": self._count,
                "token": {
                    "id": one.token_id,
                    "text": text,
                    "logprob": one.logprob,
                    "special": special,
                },
                "generated_text": "".join(self._parts) if ended else None,
                "details": self._details(output, one.token_id) if ended else None,
            }

    def _details(self, output: RequestOutput, token_id: int) -> dict[str, Any]:
        reason = "length"
        if output.finish_reason == "stop":
            reason = "eos_token" if token_id in self._eos else "stop_sequence"
        return {
            "finish_reason": reason,
            "generated_tokens": output.completion_tokens,
            "seed": output.seed,
            "input_length": output.prompt_tokens,
        }
