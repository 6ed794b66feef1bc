"""The tokenizer over HTTP: ``/tokenize``, ``/detokenize`` and ``/tokenizer_info``."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from detinfer.chat_template import Rendering
from detinfer.engine.async_engine import AsyncEngine
from detinfer.errors import RequestError
from detinfer.server.api.bodies.fields import TokenIds
from detinfer.server.api.bodies.neutral import Absent, NoOptions
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.openai import chat_prompt
from detinfer.server.api.openai.chat_body import ChatMessages, TemplateOptions, begins_answer
from detinfer.server.api.openai.tools.body import Tools
from detinfer.server.api.openapi import answered, body_of, failures
from detinfer.server.api.reading import read
from detinfer.server.service import Service
from detinfer.server.tokenizing import aside
from detinfer.server.wire import json_response, to_json

router = APIRouter()

_PIECE = 10_000  # tokens

_FAILURES = failures(400, 401, 404, 408, 413, 500, 503)


class TokenizeRequest(StrictBody):
    """The body of ``POST /tokenize``; exactly one of prompt and messages."""

    model: str | None = None
    prompt: str | None = None
    messages: ChatMessages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    return_token_strs: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Absent = None
    tools: Tools | None = None
    media_io_kwargs: NoOptions = None
    mm_processor_kwargs: NoOptions = None


class TokenizeResponse(BaseModel):
    """The tokens, as generating from the same prompt would take them."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class DetokenizeRequest(StrictBody):
    """The body of ``POST /detokenize``."""

    model: str | None = None
    tokens: TokenIds


class DetokenizeResponse(BaseModel):
    """The text, special tokens by name."""

    prompt: str


class TokenizerInfoResponse(BaseModel):
    """What a client needs to do the same at home; null where the tokenizer has none."""

    tokenizer_class: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    model_max_length: int


@router.post(
    "/tokenize",
    responses={**answered(TokenizeResponse), **_FAILURES},
    openapi_extra=body_of(TokenizeRequest),
)
async def tokenize(request: Request) -> Response:
    """Return the token ids of a text, or of messages as the model's chat template spells them."""
    _, engine, body = await read(request, TokenizeRequest)
    tokens = await _tokens(engine, body)
    strings = engine.tokenizer.convert_ids_to_tokens if body.return_token_strs else None
    longest = engine.info.max_model_len
    value = await aside(len(tokens), _tokenized, tokens, longest, strings)
    return Response(value, media_type="application/json")


@router.post(
    "/detokenize",
    responses={**answered(DetokenizeResponse), **_FAILURES},
    openapi_extra=body_of(DetokenizeRequest),
)
async def detokenize(request: Request) -> Response:
    """Return the text of token ids."""
    _, engine, body = await read(request, DetokenizeRequest)
    size = engine.info.vocab_size
    if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) < size:
        wrong = next(token for token in body.tokens if not 0 <= token < size)
        raise RequestError(f"tokens: got token id {wrong}, expected 0..{size - 1}", "tokens")
    decode = engine.tokenizer.backend_tokenizer.decode
    text = await aside(len(body.tokens), decode, body.tokens, skip_special_tokens=False)
    return json_response({"prompt": text})


@router.get("/tokenizer_info", responses={**answered(TokenizerInfoResponse), **failures(401, 503)})
async def tokenizer_info(request: Request) -> Response:
    """Return the parts of the tokenizer's configuration that clients ask for."""
    engine = Service.of(request).ready_engine()
    tokenizer = engine.tokenizer
    template = tokenizer.chat_template
    return json_response(
        {
            "tokenizer_class": type(tokenizer).__name__,
            "chat_template": template.get("default") if isinstance(template, dict) else template,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "unk_token": tokenizer.unk_token,
            "model_max_length": engine.info.max_model_len,
        }
    )


def _tokenized(
    tokens: list[int], longest: int, strings: Callable[[list[int]], list[str]] | None
) -> bytes:
    """Return the answer, written in pieces: between two of them other threads get their turn."""
    ids, names = [], []
    for start in range(0, len(tokens), _PIECE):
        piece = tokens[start : start + _PIECE]
        ids.append(to_json(piece)[1:-1])
        if strings is not None:
            names.append(to_json(strings(piece))[1:-1])
    token_strs = "null" if strings is None else f"[{','.join(names)}]"
    return (
        f'{{"tokens":[{",".join(ids)}],"count":{len(tokens)},"max_model_len":{longest},'
        f'"token_strs":{token_strs}}}'
    ).encode("utf-8", "replace")


async def _tokens(engine: AsyncEngine, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        got = "neither" if body.prompt is None else "both"
        raise RequestError(f"prompt: got {got} of prompt and messages, expected one", "prompt")
    if body.prompt is None:
        rendering = Rendering(
            body.chat_template_kwargs or {},
            begins_answer(body.add_generation_prompt, body.continue_final_message),
            bool(body.continue_final_message),
            bool(body.add_special_tokens),
            [tool.for_template() for tool in body.tools or ()],
        )
        return await chat_prompt.render(engine, body.messages, rendering)
    tokens = await aside(
        len(body.prompt),
        engine.tokenizer.encode,
        body.prompt,
        add_special_tokens=body.add_special_tokens is not False,
    )
    return list(tokens)
