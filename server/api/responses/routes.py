"""OpenAI's ``POST /v1/responses``: its stateless core."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import ClassVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.async_engine import AsyncEngine
from detinfer.errors import RequestError
from detinfer.server.api.openai.chat_choice import ChatChoice
from detinfer.server.api.openai.chat_prompt import render
from detinfer.server.api.openai.telling import Telling
from detinfer.server.api.openai.tools.forced import forcing
from detinfer.server.api.openai.tools.reading import PROMPT_END, Reading, reading_of
from detinfer.server.api.openapi import body_of, failures, streamed
from detinfer.server.api.reading import read
from detinfer.server.api.responses.answer import ResponseAnswer, frame_of
from detinfer.server.api.responses.body import (
    ResponsesRequest,
    messages,
    rendering,
    responses_call,
)
from detinfer.server.api.responses.described import ResponsesResponse
from detinfer.server.api.responses.tools import calling
from detinfer.server.api.token_texts import token_texts
from detinfer.server.call import Call, in_words_of_client
from detinfer.server.errors import failure_of
from detinfer.server.generation import Job
from detinfer.server.http.sse import EventStream
from detinfer.server.reply import Reply, Value
from detinfer.server.wire import to_json_bytes

router = APIRouter()


@router.post(
    "/v1/responses",
    responses={
        **streamed(
            ResponsesResponse, "The response; with `stream` server-sent events, each of a `type`"
        ),
        **failures(400, 401, 404, 408, 413, 429, 500, 503, 504),
    },
    openapi_extra=body_of(ResponsesRequest),
)
async def responses(request: Request) -> Response:
    """Answer an input, which the model's own chat template makes a prompt of; nothing is stored."""
    service, engine, body = await read(request, ResponsesRequest)
    called = calling(body.tools, body.tool_choice, body.parallel_tool_calls)
    try:
        prompt = await render(engine, messages(body), rendering(body))
    except RequestError as error:
        of_messages = str(error.param).startswith("messages")
        words = {str(error.param): "input"} if of_messages else {}
        raise in_words_of_client(error, words) from None
    shows = body.include_reasoning is not False
    reading = reading_of(engine.tokenizer, service.config, called, reasons=True, shows=shows)
    calls = await forcing(called, len(await request.body()))
    call = responses_call(body, prompt, service.default_deterministic, reading, calls)
    return await _ResponsesReply(request, call, body, reading).response()


class _Stream(EventStream):
    end = b""  # as OpenAI's: the last event is of the response's end


class _ResponsesReply(Reply[Call, ResponseAnswer]):
    prefix: ClassVar[str] = "resp"
    stream = _Stream

    def __init__(
        self, request: Request, call: Call, body: ResponsesRequest, reading: Reading
    ) -> None:
        super().__init__(request, call)
        self._reading = reading
        engine = self.service.ready_engine()
        about = {
            "model": self.service.model_id(engine),
            "system_fingerprint": engine.info.system_fingerprint,
        }
        self._frame = frame_of(body, call, body.request_id or uuid.uuid4().hex, about)

    @staticmethod
    def event(value: Value) -> bytes:
        kind: str = value["type"]
        return b"event: " + kind.encode() + b"\ndata: " + to_json_bytes(value) + b"\n\n"

    async def begin(self, engine: AsyncEngine, jobs: Sequence[Job]) -> list[ResponseAnswer]:
        [job] = jobs
        texts, telling = token_texts(engine.tokenizer), Telling(logprobs=job.params.logprobs)
        prompt = job.prompt_token_ids
        reader = self._reading.reader(job.params, texts.decode(prompt[-PROMPT_END:]))
        told = (0, texts, telling, prompt, None)
        choice = ChatChoice(*told, self._reading, reader, self._frame["id"])
        return [ResponseAnswer(choice, self._frame)]

    async def streamed(self) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(super().streamed()) as chunks:
                async for chunk in chunks:
                    yield chunk
        except Exception as error:
            if not self.answers or not self.answers[0].begun:
                raise
            failure = failure_of(error)
            yield self.event(self.answers[0].failure("server_error", failure.message))
