"""OpenAI's ``POST /v1/embeddings``: a vector of each input."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.outputs import RequestOutput
from detinfer.errors import RequestError
from detinfer.params import MAX_TOKENS_LIMIT
from detinfer.server.api.bodies.fields import Integer, Prompt, Text, at_most, documented, needs
from detinfer.server.api.bodies.neutral import Ignored, Neutral
from detinfer.server.api.openai.vectors import (
    MAX_INPUTS,
    EmbeddingUsage,
    Texts,
    VectorsBody,
    VectorsCall,
    several,
)
from detinfer.server.api.openapi import answered, body_of, failures
from detinfer.server.tokenizing import aside
from detinfer.server.wire import to_json

router = APIRouter()

Prompts = Annotated[list[Prompt], Field(fail_fast=True), several, at_most(MAX_INPUTS)]


class EmbeddingRequest(VectorsBody):
    """The body of ``POST /v1/embeddings``."""

    several_types: ClassVar[dict[str, str]] = {
        "input": "a string, a list of strings, of token ids, or of lists of token ids"
    }

    model_config = ConfigDict(json_schema_extra=needs("input"))

    input: Text | Texts | Prompt | Prompts | None = None
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: of binary32, little-endian; float unless given"
    )
    dimensions: Annotated[Integer, documented(1, MAX_TOKENS_LIMIT)] | None = Field(
        None, description="how many of a vector's first numbers are kept, before it is normalised"
    )
    # Ours
    normalize: bool | None = Field(None, description="to length 1; true unless given")
    # vLLM's
    add_special_tokens: Annotated[Any, Neutral(True)] = None
    request_id: Ignored = None
    use_activation: Annotated[Any, Neutral(True)] = None
    embed_dtype: Annotated[Any, Neutral("float32")] = None
    endianness: Annotated[Any, Neutral("native", "little")] = None


class EmbeddingItem(BaseModel):
    """One input's vector; ``digest`` is the SHA-256 of its numbers, binary32, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    digest: str


class EmbeddingResponse(BaseModel):
    """The answer of ``/v1/embeddings``."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage
    system_fingerprint: str
    deterministic: bool


@router.post(
    "/v1/embeddings",
    responses={
        **answered(EmbeddingResponse),
        **failures(400, 401, 404, 408, 413, 429, 500, 503, 504),
    },
    openapi_extra=body_of(EmbeddingRequest),
)
async def embeddings(request: Request) -> Response:
    """Return a vector of each input, made of its tokens' final hidden states."""
    call = await VectorsCall.read(request, EmbeddingRequest)
    outputs = await call.vectors({"input": _inputs(call.body)}, "embd")
    numbers = len(outputs) * call.engine.info.hidden_size
    as_base64 = call.body.encoding_format == "base64"
    written = await aside(numbers, _written, call.frame(outputs), outputs, as_base64)
    headers = call.headers([str(output.digest) for output in outputs])
    return Response(written, headers=headers, media_type="application/json")


def _inputs(body: EmbeddingRequest) -> list[Any]:
    """Return the texts, or the lists of token ids.

    Raises:
        RequestError: there is none.
    """
    given: Any = body.input
    if given is None:
        expected = EmbeddingRequest.several_types["input"]
        raise RequestError(f"input: missing, expected {expected}", "input")
    one = isinstance(given, str) or (given and isinstance(given[0], int))
    return [given] if one else given


def _written(frame: dict[str, Any], outputs: Sequence[RequestOutput], as_base64: bool) -> bytes:
    """Return the answer, written in pieces: between two of them other threads get their turn."""
    items = []
    for index, output in enumerate(outputs):
        raw = output.embedding or b""
        numbers = list(struct.unpack(f"<{len(raw) // 4}f", raw))
        value = base64.b64encode(raw).decode() if as_base64 else numbers
        item = {"object": "embedding", "index": index, "embedding": value, "digest": output.digest}
        items.append(to_json(item))
    return f'{to_json(frame)[:-1]},"data":[{",".join(items)}]}}'.encode()
