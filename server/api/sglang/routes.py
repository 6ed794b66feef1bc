"""SGLang's routes around ``/generate``, and its answers to that."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from detinfer.params import SamplingParams
from detinfer.server.api.openapi import answered, failures, plain
from detinfer.server.api.sglang.body import SGLangCall, SGLangRequest, sglang_call
from detinfer.server.api.sglang.values import SGLangAnswer
from detinfer.server.api.status import Ready, Told
from detinfer.server.generation import Job, cache_salt, digest_header, gather, run_jobs
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.http.sse import EventStream, event
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()


@router.get(
    "/get_model_info",
    operation_id="get_model_info",
    response_model=None,
    responses={**answered(Told), **failures(401, 503)},
)
@router.get("/model_info", response_model=None, responses={**answered(Told), **failures(401, 503)})
async def model_info(request: Request) -> Response:
    """Return what is served, in SGLang's words."""
    service: Service = request.app.state.service
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


@router.get(
    "/health_generate",
    response_model=None,
    responses={**answered(Ready), **failures(401, 429, 500, 503, 504)},
)
async def health_generate(request: Request) -> Response:
    """200 once the engine has given a token, or at once while it is giving others theirs."""
    service: Service = request.app.state.service
    engine = service.ready_engine()
    if not service.active:
        name = f"health-{uuid.uuid4().hex}"
        job = Job(name, [0], SamplingParams(max_tokens=1), cache_salt(request))

        async def run() -> None:
            with service.answering():
                async with aclosing(run_jobs(engine, [job])) as batches:
                    async for _ in batches:
                        pass

        await until_disconnect(request.receive, run())
    return json_response({"status": "ready"})


@router.post(
    "/flush_cache",
    response_model=None,
    responses={**plain("What was done"), **failures(401, 503)},
)
async def flush_cache(request: Request) -> Response:
    """Let later prompts start cold: nothing is taken from what is in the prefix cache now."""
    service: Service = request.app.state.service
    service.ready_engine()
    service.flush(request)
    return PlainTextResponse("Cache flushed.\n")


async def answer_sglang(request: Request, body: SGLangRequest) -> Response:
    """Return the answer to a body, whole or in a stream."""
    service: Service = request.app.state.service
    call = sglang_call(body, service.default_deterministic)
    salt = cache_salt(request)
    headers = {"x-detinfer-deterministic": str(call.params.deterministic).lower()}
    if call.stream:
        return EventStream(_events(service, call, salt), headers)
    answers = await until_disconnect(request.receive, _answers(service, call, salt))
    values = [answer.value() for answer in answers]
    headers |= digest_header([str(value["meta_info"]["digest"]) for value in values])
    return json_response(values if call.many else values[0], headers=headers)


async def _answers(service: Service, call: SGLangCall, salt: str) -> list[SGLangAnswer]:
    with service.answering():
        jobs, answers = await _start(service, call, salt)
        await gather(run_jobs(service.ready_engine(), jobs), answers)
    return answers


async def _events(service: Service, call: SGLangCall, salt: str) -> AsyncGenerator[bytes, None]:
    with service.answering():
        jobs, answers = await _start(service, call, salt)
        async with aclosing(run_jobs(service.ready_engine(), jobs)) as batches:
            async for batch in batches:
                chunks = []
                for index, output in batch:
                    answers[index].add(output)
                    place = {"index": index} if call.many else {}
                    chunks.append(event(answers[index].value() | place))
                yield b"".join(chunks)


async def _start(
    service: Service, call: SGLangCall, salt: str
) -> tuple[Sequence[Job], list[SGLangAnswer]]:
    """Return the jobs, and the answers that their outputs are to be put in."""
    engine = service.ready_engine()
    jobs = await call.jobs(engine, f"gen-{uuid.uuid4().hex}", salt)
    names = call.names or [job.request_id for job in jobs]
    return jobs, [
        SGLangAnswer(call, job, name, engine) for job, name in zip(jobs, names, strict=True)
    ]
