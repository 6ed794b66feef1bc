"""OpenAI's routes: ``/v1/completions`` and ``/v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from detinfer.server.api.bodies.strict import parse_body
from detinfer.server.api.openai import chat_prompt
from detinfer.server.api.openai.answers import ChatCompletionResponse, CompletionResponse
from detinfer.server.api.openai.chat_body import ChatCompletionRequest, chat_call, rendering
from detinfer.server.api.openai.completion_body import (
    CompletionRequest,
    OpenAICall,
    completion_call,
)
from detinfer.server.api.openai.telling import Value
from detinfer.server.api.openai.values import ChatChoice, Choice, CompletionChoice, usage
from detinfer.server.api.openapi import body_of, failures, streamed
from detinfer.server.api.token_texts import Echo, TokenTexts, echo_of, token_texts
from detinfer.server.generation import (
    Job,
    Outputs,
    aside,
    cache_salt,
    digest_header,
    gather,
    other_model,
    run_jobs,
)
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.http.sse import EventStream, event
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()

_STREAM = "with `stream` server-sent events, each a chunk, that end with `[DONE]`"
_FAILURES = failures(400, 401, 404, 408, 413, 429, 500, 503, 504)


@router.post(
    "/v1/completions",
    response_model=None,
    responses={**streamed(CompletionResponse, f"The answers; {_STREAM}"), **_FAILURES},
    openapi_extra=body_of(CompletionRequest),
)
async def completions(request: Request) -> Response:
    """Continue texts or lists of token ids."""
    service: Service = request.app.state.service
    engine = service.ready_engine()
    body = parse_body(CompletionRequest, await request.body())
    if (refusal := other_model(service, body.model)) is not None:
        return refusal
    call = completion_call(body, service.default_deterministic)
    texts = token_texts(engine.tokenizer)

    async def choices(jobs: Sequence[Job]) -> list[Choice]:
        echoes = await _echoes(call, texts, jobs) if call.echo else [None] * len(call.prompts)
        return [
            CompletionChoice(
                index,
                texts,
                call.telling,
                job.prompt_token_ids,
                echoes[index // call.params.n],
                call.prompt_only,
            )
            for index, job in enumerate(jobs)
        ]

    return await _answer(request, _Exchange(service, call, choices, "cmpl", _COMPLETION))


@router.post(
    "/v1/chat/completions",
    response_model=None,
    responses={**streamed(ChatCompletionResponse, f"The answers; {_STREAM}"), **_FAILURES},
    openapi_extra=body_of(ChatCompletionRequest),
)
async def chat_completions(request: Request) -> Response:
    """Answer messages, which the model's own chat template makes a prompt of."""
    service: Service = request.app.state.service
    engine = service.ready_engine()
    body = parse_body(ChatCompletionRequest, await request.body())
    if (refusal := other_model(service, body.model)) is not None:
        return refusal
    prompt = await chat_prompt.render(engine, body.messages, rendering(body))
    call = chat_call(body, prompt, service.default_deterministic)
    texts = token_texts(engine.tokenizer)

    async def choices(jobs: Sequence[Job]) -> list[Choice]:
        last = body.messages[-1] if body.messages and call.echo else None
        echoed = last.content if last is not None and last.role == "assistant" else ""
        return [
            ChatChoice(index, texts, call.telling, job.prompt_token_ids, echoed)
            for index, job in enumerate(jobs)
        ]

    return await _answer(request, _Exchange(service, call, choices, "chatcmpl", _CHAT))


async def _echoes(call: OpenAICall, texts: TokenTexts, jobs: Sequence[Job]) -> list[Echo]:
    """Every prompt as it comes before its answers."""
    placed = call.params.logprobs is not None
    echoes = []
    for sent, job in zip(call.prompts, jobs[:: call.params.n], strict=True):
        prompt = sent if call.truncation is None else job.prompt_token_ids
        size = len(prompt) * (1 if isinstance(prompt, str) else _CHARACTERS_A_TOKEN)
        echoes.append(await aside(size, echo_of, texts, prompt, placed, call.add_special_tokens))
    return echoes


_CHARACTERS_A_TOKEN = 8  # in time: what decoding a token costs, in characters to tokenise


# The object's name, of whole answers and of chunks.
_COMPLETION = ("text_completion", "text_completion")
_CHAT = ("chat.completion", "chat.completion.chunk")


@dataclass(frozen=True)
class _Exchange:
    """What the two routes differ in.

    Attributes:
        choices: makes the choices of all jobs, in their order.
        prefix: of the answer's id.
        objects: names of the whole answer and of a chunk.
    """

    service: Service
    call: OpenAICall
    choices: Callable[[Sequence[Job]], Awaitable[list[Choice]]]
    prefix: str
    objects: tuple[str, str]


async def _answer(request: Request, exchange: _Exchange) -> Response:
    call, salt = exchange.call, cache_salt(request)
    headers = {"x-detinfer-deterministic": str(call.params.deterministic).lower()}
    if call.stream:
        return EventStream(_events(exchange, salt), headers)
    value = await until_disconnect(request.receive, _whole(exchange, salt))
    digests = [str(choice["digest"]) for choice in value["choices"]]
    return json_response(value, headers=headers | digest_header(digests))


async def _whole(exchange: _Exchange, salt: str) -> Value:
    with exchange.service.answering():
        frame = _frame(exchange, exchange.objects[0])
        outputs, choices = await _start(exchange, salt)
        await gather(outputs, choices)
        return {
            **frame,
            "choices": [choice.whole() for choice in choices],
            "usage": usage(choices, exchange.call.params.n),
            **_of_prompt(choices),
        }


async def _events(exchange: _Exchange, salt: str) -> AsyncGenerator[bytes, None]:
    call = exchange.call
    with exchange.service.answering():
        frame = _frame(exchange, exchange.objects[1])
        outputs, choices = await _start(exchange, salt)
        begun = False
        async with aclosing(outputs):
            async for batch in outputs:
                chunks = []
                for index, output in batch:
                    choice = choices[index]
                    for value in choice.chunks(output):
                        chunk = {**frame, "choices": [value]}
                        if not begun:
                            begun, chunk = True, {**chunk, **_of_prompt(choices)}
                        if call.continuous_usage:
                            chunk["usage"] = usage([choice], 1)
                        elif call.include_usage:
                            chunk["usage"] = None
                        chunks.append(event(chunk))
                if chunks:
                    yield b"".join(chunks)
        if call.include_usage:
            yield event({**frame, "choices": [], "usage": usage(choices, call.params.n)})


def _frame(exchange: _Exchange, kind: str) -> Value:
    """Return the fields that an answer and all its chunks share."""
    engine = exchange.service.ready_engine()
    return {
        "id": f"{exchange.prefix}-{exchange.call.request_id or uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": exchange.service.model_id(engine),
        "system_fingerprint": engine.info.system_fingerprint,
    }


def _of_prompt(choices: Sequence[Choice]) -> Value:
    """Return what a chat's answer, or its first chunk, tells of the prompt."""
    first = choices[0]
    return first.of_prompt() if isinstance(first, ChatChoice) else {}


async def _start(exchange: _Exchange, salt: str) -> tuple[Outputs, Sequence[Choice]]:
    """Return the outputs to come, and the choices they are to be put in."""
    engine = exchange.service.ready_engine()
    name = f"{exchange.prefix}-{uuid.uuid4().hex}"  # clients may choose one id twice
    jobs = await exchange.call.jobs(engine, name, salt)
    choices = await exchange.choices(jobs)
    return run_jobs(engine, jobs), choices
