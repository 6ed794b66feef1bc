"""``POST /generate``, in each of its dialects."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.async_engine import AsyncEngine
from detinfer.server.api.bodies.strict import read_json, validated
from detinfer.server.api.generate.body import GenerateRequest, GenerateResponse, generate_call
from detinfer.server.api.generate.dialects import DIALECTS, dialect_of
from detinfer.server.api.generate.values import GenerateAnswer
from detinfer.server.api.openapi import body_of, failures, streamed
from detinfer.server.api.sglang.body import SGLangRequest, SGLangResponse, sglang_call
from detinfer.server.api.sglang.routes import SGLangReply
from detinfer.server.api.tgi.body import TGIError, TGIRequest, TGIResponse, tgi_call, tgi_failure
from detinfer.server.api.tgi.routes import TGIReply
from detinfer.server.call import Call
from detinfer.server.errors import ErrorResponse, speak
from detinfer.server.generation import Job
from detinfer.server.reply import Reply
from detinfer.server.service import Service

router = APIRouter()

_Answer = GenerateResponse | SGLangResponse | TGIResponse


@router.post(
    "/generate",
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
    service = Service.of(request)
    service.ready_engine()
    value = read_json(await request.body())
    dialect, default = dialect_of(value), service.default_deterministic
    if dialect is TGIRequest:
        speak(request, tgi_failure)
        tgi = validated(TGIRequest, value)
        return await TGIReply(request, tgi_call(tgi, bool(tgi.stream), default)).response()
    if dialect is SGLangRequest:
        sglang = validated(SGLangRequest, value)
        return await SGLangReply(request, sglang_call(sglang, default)).response()
    body = validated(GenerateRequest, value)
    return await _GenerateReply(request, generate_call(body, default)).response()


class _GenerateReply(Reply[Call, GenerateAnswer]):
    async def begin(self, engine: AsyncEngine, jobs: Sequence[Job]) -> Sequence[GenerateAnswer]:
        places = [{"index": index} if self.call.many else {} for index in range(len(jobs))]
        return [GenerateAnswer(place, engine.info.system_fingerprint) for place in places]
