"""vLLM's ``POST /score``: how alike two texts are, by their vectors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.outputs import RequestOutput
from detinfer.engine.scoring import check_pairs, scores
from detinfer.errors import RequestError
from detinfer.server.api.bodies.fields import Name, Text, check_names
from detinfer.server.api.bodies.neutral import Absent, Either, NoOptions, Zero
from detinfer.server.api.openai.vectors import EmbeddingUsage, Texts, VectorsBody, VectorsCall
from detinfer.server.api.openapi import answered, body_of, failures
from detinfer.server.tokenizing import aside
from detinfer.server.wire import json_response

router = APIRouter()

# What vLLM calls the texts of a pair.
PAIRS = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)
_NAMES = list(dict.fromkeys(name for pair in PAIRS for name in pair))
_SEVERAL = "a string or a list of strings"
_ONE = "one, or as many as there are others"
_OTHER = "each pair's other"


class ScoreRequest(VectorsBody):
    """The body of ``POST /score``: one of the pairs of names that texts go by."""

    several_types: ClassVar[dict[str, str]] = dict.fromkeys(_NAMES, _SEVERAL)

    text_1: Text | Texts | None = Field(None, description=_ONE)
    text_2: Text | Texts | None = Field(None, description=_OTHER)
    queries: Text | Texts | None = Field(None, description=_ONE)
    documents: Text | Texts | None = Field(None, description=_OTHER)
    items: Text | Texts | None = Field(None, description=_OTHER)
    data_1: Text | Texts | None = Field(None, description=_ONE)
    data_2: Text | Texts | None = Field(None, description=_OTHER)
    # vLLM's
    request_id: Name | None = Field(None, description="part of the answer's id")
    max_tokens_per_query: Zero = None
    max_tokens_per_doc: Zero = None
    instruction: Absent = None
    chat_template_kwargs: NoOptions = None
    use_activation: Either = None


class ScoreItem(BaseModel):
    """One pair's score.

    ``digest`` is the SHA-256 of both vectors' numbers and the score, binary32, little-endian.
    """

    object: Literal["score"]
    index: int
    score: float
    digest: str


class ScoreResponse(BaseModel):
    """The answer of ``/score``."""

    id: str
    object: Literal["list"]
    created: int
    data: list[ScoreItem]
    model: str
    usage: EmbeddingUsage
    system_fingerprint: str
    deterministic: bool


_ROUTE: dict[str, Any] = {
    "responses": {
        **answered(ScoreResponse),
        **failures(400, 401, 404, 408, 413, 429, 500, 503, 504),
    },
    "openapi_extra": body_of(ScoreRequest),
}


@router.post("/score", **_ROUTE)
@router.post("/v1/score", operation_id="v1_score", **_ROUTE)
async def score(request: Request) -> Response:
    """Return how alike the texts of each pair are: the inner product of their vectors."""
    call = await VectorsCall.read(request, ScoreRequest)
    check_names(call.body, "request_id")
    name = f"score-{call.body.request_id or uuid.uuid4().hex}"
    names = _pair(call.body)
    first, second = (_listed(getattr(call.body, field)) for field in names)
    check_pairs(names, len(first), len(second))
    outputs = await call.vectors(dict(zip(names, (first, second), strict=True)), "score")
    numbers = len(outputs) * call.engine.info.hidden_size
    data = await aside(numbers, _data, outputs[: len(first)], outputs[len(first) :])
    frame = {"id": name, "created": int(time.time()), **call.frame(outputs), "data": data}
    return json_response(frame, headers=call.headers([one["digest"] for one in data]))


def _pair(body: ScoreRequest) -> tuple[str, str]:
    """Return the names of the pair that is given.

    Raises:
        RequestError: half a pair, or more than one.
    """
    given = {name for name in _NAMES if getattr(body, name) is not None}
    for pair in PAIRS:
        if given == {*pair}:
            return pair
    for pair in PAIRS:
        if given < {*pair}:
            missing = next(name for name in pair if name not in given)
            raise RequestError(f"{missing}: missing, expected {_SEVERAL}", missing)
    one, *_, last = (name for name in _NAMES if name in given)
    pairs = ", ".join(" and ".join(pair) for pair in PAIRS)
    raise RequestError(f"{last}: got it beside {one}, expected one of the pairs {pairs}", last)


def _listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _data(first: Sequence[RequestOutput], second: Sequence[RequestOutput]) -> list[dict[str, Any]]:
    found = scores(_matrix(first), _matrix(second))
    return [
        {"object": "score", "index": index, "score": score, "digest": digest}
        for index, (score, digest) in enumerate(found)
    ]


def _matrix(outputs: Sequence[RequestOutput]) -> Any:
    return np.stack([np.frombuffer(output.embedding or b"", "<f4") for output in outputs])
