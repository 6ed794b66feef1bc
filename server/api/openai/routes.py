"""OpenAI's routes: ``/v1/completions`` and ``/v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.outputs import RequestOutput
from detinfer.server.api.openai.answers import ChatCompletionResponse, CompletionResponse
from detinfer.server.api.openai.chat_body import ChatCompletionRequest, chat_call, rendering
from detinfer.server.api.openai.chat_choice import ChatChoice
from detinfer.server.api.openai.chat_prompt import render
from detinfer.server.api.openai.common_body import OpenAICall
from detinfer.server.api.openai.completion_body import CompletionRequest, completion_call
from detinfer.server.api.openai.completion_choice import CompletionChoice
from detinfer.server.api.openai.echo import Echo, echo_of
from detinfer.server.api.openai.telling import usage
from detinfer.server.api.openai.tools.body import calling_of
from detinfer.server.api.openai.tools.forced import forcing
from detinfer.server.api.openai.tools.reading import PROMPT_END, Reading, reading_of
from detinfer.server.api.openapi import body_of, failures, streamed
from detinfer.server.api.reading import read
from detinfer.server.api.token_texts import TokenTexts, token_texts
from detinfer.server.generation import Job
from detinfer.server.reply import Reply, Value
from detinfer.server.tokenizing import aside

router = APIRouter()

_STREAM = "with `stream` server-sent events, each a chunk, that end with `[DONE]`"
_FAILURES = failures(400, 401, 404, 408, 413, 429, 500, 503, 504)
_CHARACTERS_A_TOKEN = 8  # in time: what decoding a token costs, in characters to tokenise

ChoiceT = TypeVar("ChoiceT", CompletionChoice, ChatChoice)


@router.post(
    "/v1/completions",
    responses={**streamed(CompletionResponse, f"The answers; {_STREAM}"), **_FAILURES},
    openapi_extra=body_of(CompletionRequest),
)
async def completions(request: Request) -> Response:
    """Continue texts or lists of token ids."""
    service, _, body = await read(request, CompletionRequest)
    call = completion_call(body, service.default_deterministic)
    return await _CompletionReply(request, call).response()


@router.post(
    "/v1/chat/completions",
    responses={**streamed(ChatCompletionResponse, f"The answers; {_STREAM}"), **_FAILURES},
    openapi_extra=body_of(ChatCompletionRequest),
)
async def chat_completions(request: Request) -> Response:
    """Answer messages, which the model's own chat template makes a prompt of."""
    service, engine, body = await read(request, ChatCompletionRequest)
    calling = calling_of(body.tools, body.tool_choice, body.parallel_tool_calls)
    prompt = await render(engine, body.messages, rendering(body))
    reading = reading_of(
        engine.tokenizer,
        service.config,
        calling,
        reasons=body.separate_reasoning is not False,
        shows=body.include_reasoning is not False,
    )
    calls = await forcing(calling, len(await request.body()))
    call = chat_call(body, prompt, service.default_deterministic, reading, calls)
    return await _ChatReply(request, call, reading).response()


class _OpenAIReply(Reply[OpenAICall, ChoiceT]):
    objects: ClassVar[tuple[str, str]]  # names of the whole answer and of a chunk

    def __init__(self, request: Request, call: OpenAICall) -> None:
        super().__init__(request, call)
        engine = self.service.ready_engine()
        # What an answer and all its chunks share.
        self._frame: Value = {
            "id": f"{self.prefix}-{call.request_id or uuid.uuid4().hex}",
            "object": self.objects[call.stream],
            "created": int(time.time()),
            "model": self.service.model_id(engine),
            "system_fingerprint": engine.info.system_fingerprint,
        }
        self._begun = False

    def of_prompt(self) -> Value:
        """Return what the answer, or its first chunk, tells of the prompt."""
        return {}

    def events(self, index: int, output: RequestOutput) -> list[Value]:
        choice = self.answers[index]
        chunks = [{**self._frame, "choices": [value]} for value in choice.events(output)]
        if chunks and not self._begun:
            self._begun = True
            chunks[0] |= self.of_prompt()
        if self.call.include_usage or self.call.continuous_usage:
            so_far = usage([choice], 1) if self.call.continuous_usage else None
            chunks = [{**chunk, "usage": so_far} for chunk in chunks]
        return chunks

    def last_events(self) -> Iterator[Value]:
        if self.call.include_usage:
            yield {**self._frame, "choices": [], "usage": self._usage()}

    def body(self, values: list[Value]) -> Value:
        return {**self._frame, "choices": values, "usage": self._usage(), **self.of_prompt()}

    def _usage(self) -> Value:
        return usage(self.answers, self.call.params.n)


class _CompletionReply(_OpenAIReply[CompletionChoice]):
    prefix = "cmpl"
    objects = ("text_completion", "text_completion")

    async def begin(self, engine: AsyncEngine, jobs: Sequence[Job]) -> list[CompletionChoice]:
        call, texts, n = self.call, token_texts(engine.tokenizer), self.call.params.n
        echoes: list[Echo | None] = [None] * len(call.prompts)
        if call.echo:
            sent: list[Any] = call.prompts
            firsts = zip(sent, jobs[::n], strict=True)
            echoes = [await self._echo(texts, prompt, job) for prompt, job in firsts]
        return [
            CompletionChoice(index, texts, call.telling, job.prompt_token_ids, echoes[index // n])
            for index, job in enumerate(jobs)
        ]

    async def _echo(self, texts: TokenTexts, sent: str | list[int], job: Job) -> Echo:
        """Return a prompt as it comes before its answers."""
        call = self.call
        placed = call.params.logprobs is not None
        prompt = sent if call.truncation is None else job.prompt_token_ids
        size = len(prompt) * (1 if isinstance(prompt, str) else _CHARACTERS_A_TOKEN)
        return await aside(size, echo_of, texts, prompt, placed, call.add_special_tokens)


class _ChatReply(_OpenAIReply[ChatChoice]):
    prefix = "chatcmpl"
    objects = ("chat.completion", "chat.completion.chunk")

    def __init__(self, request: Request, call: OpenAICall, reading: Reading) -> None:
        super().__init__(request, call)
        self._reading = reading

    async def begin(self, engine: AsyncEngine, jobs: Sequence[Job]) -> list[ChatChoice]:
        call, texts, reading = self.call, token_texts(engine.tokenizer), self._reading
        echo = Echo(call.echoed, None) if call.echoed else None
        choices = []
        for index, job in enumerate(jobs):
            prompt = job.prompt_token_ids
            reader = reading.reader(job.params, texts.decode(prompt[-PROMPT_END:]))
            told = (index, texts, call.telling, prompt, echo)
            choices.append(ChatChoice(*told, reading, reader, self._frame["id"]))
        return choices

    def of_prompt(self) -> Value:
        return self.answers[0].of_prompt()
