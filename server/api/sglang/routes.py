"""SGLang's routes around ``/generate``, and its answers to that."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from detinfer.engine.async_engine import AsyncEngine
from detinfer.params import SamplingParams
from detinfer.server.api.openapi import answered, failures, plain
from detinfer.server.api.sglang.body import SGLangCall
from detinfer.server.api.sglang.values import SGLangAnswer
from detinfer.server.api.status import Ready, Told
from detinfer.server.generation import Job, run_jobs
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.reply import Reply, Value
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()


@router.get(
    "/get_model_info",
    operation_id="get_model_info",
    responses={**answered(Told), **failures(401, 503)},
)
@router.get("/model_info", responses={**answered(Told), **failures(401, 503)})
async def model_info(request: Request) -> Response:
    """Return what is served, in SGLang's words."""
    service = Service.of(request)
    engine = service.ready_engine()
    name = service.model_id(engine)
    return json_response(
        {
            "model_path": name,
            "served_model_name": name,
            "tokenizer_path": name,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": engine.info.fingerprint.get("weights"),
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "system_fingerprint": engine.info.system_fingerprint,
        }
    )


@router.get("/health_generate", responses={**answered(Ready), **failures(401, 429, 500, 503, 504)})
async def health_generate(request: Request) -> Response:
    """200 once the engine has given a token, or at once while it is giving others theirs."""
    service = Service.of(request)
    engine = service.ready_engine()
    if not service.active:
        name = f"health-{uuid.uuid4().hex}"
        job = Job(name, [0], SamplingParams(max_tokens=1), service.salted(request))

        async def run() -> None:
            with service.answering():
                async with aclosing(run_jobs(engine, [job])) as batches:
                    async for _ in batches:
                        pass

        await until_disconnect(request.receive, run())
    return json_response({"status": "ready"})


@router.post("/flush_cache", responses={**plain("What was done"), **failures(401, 503)})
async def flush_cache(request: Request) -> Response:
    """Let later prompts start cold: nothing is taken from what is in the prefix cache now."""
    service = Service.of(request)
    service.ready_engine()
    service.flush(request)
    return PlainTextResponse("Cache flushed.\n")


class SGLangReply(Reply[SGLangCall, SGLangAnswer]):
    """SGLang's answers to ``/generate``."""

    async def begin(self, engine: AsyncEngine, jobs: Sequence[Job]) -> Sequence[SGLangAnswer]:
        """See ``Reply``."""
        names = self.call.names or [job.request_id for job in jobs]
        return [
            SGLangAnswer(self.call, job, name, index, engine)
            for index, (job, name) in enumerate(zip(jobs, names, strict=True))
        ]

    def digest(self, value: Value) -> str | None:
        """See ``Reply``."""
        return super().digest(value["meta_info"])
