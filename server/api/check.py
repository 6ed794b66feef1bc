"""``POST /check``: is this server's answer the same under every load? As server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import CancelledError
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from detinfer.check import Check, CheckResult, Mode, Progress, Target, default_targets
from detinfer.check.target import sampling
from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.validation import check_request
from detinfer.errors import RequestError
from detinfer.params import SamplingParams
from detinfer.server.api.bodies.fields import Integer, Seed, Text, documented, stated
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.check_subject import AsyncEngineSubject, can_constrain
from detinfer.server.api.openapi import EVENTS, body_of, failures
from detinfer.server.api.reading import read
from detinfer.server.call import check_range
from detinfer.server.http.sse import EventStream, event
from detinfer.server.service import Service
from detinfer.server.tokenizing import tokenize

router = APIRouter()

MAX_RUNS = 1000
MAX_CHECK_TOKENS = 256


class CheckRequest(StrictBody):
    """The body of ``POST /check``."""

    prompt: Text | None = Field(None, description="detinfer check's own prompts unless given")
    runs: Annotated[Integer, documented(1, MAX_RUNS)] | None = Field(
        None, description="answers that are compared with the one it gets alone; 20 unless given"
    )
    max_tokens: Annotated[Integer, documented(1, MAX_CHECK_TOKENS)] | None = Field(
        None, description="32 unless given"
    )
    modes: Annotated[list[Mode], stated(minItems=1, uniqueItems=True)] | None = Field(
        None, description="judged on the first; deterministic alone unless given"
    )
    seed: Seed | None = Field(None, description="draws the loads; a fresh one unless given")


@router.post(
    "/check",
    responses={
        200: {
            "description": "Server-sent events: `progress` after each load, then the result, then "
            "`[DONE]`",
            "content": EVENTS,
        },
        **failures(400, 401, 408, 413, 429, 500, 503, 504),
    },
    openapi_extra=body_of(CheckRequest),
)
async def check(request: Request) -> Response:
    """Answer prompts many times, each time under another load, and compare bit for bit."""
    service, engine, body = await read(request, CheckRequest)
    check_range("runs", body.runs, 1, MAX_RUNS)
    check_range("max_tokens", body.max_tokens, 1, MAX_CHECK_TOKENS)
    check_range("seed", body.seed, 0, (1 << 64) - 1)
    runs, most = body.runs or 20, body.max_tokens or 32
    modes: list[Mode] = ["deterministic"] if body.modes is None else body.modes
    if len(set(modes)) < max(len(modes), 1):
        raise RequestError(f"modes: got {len(modes)}, expected each at most once", "modes")
    if "fast" in modes and not engine.info.allow_fast:
        raise RequestError("modes: got fast, but this server runs without the fast mode", "modes")
    with service.checking():
        constrain = await can_constrain(engine)
    subject = AsyncEngineSubject(engine, service.salted(request), constrain)
    targets = default_targets(subject.bounds, most)
    if body.prompt is not None:
        targets = [Target(body.prompt, SamplingParams(max_tokens=most))]
    for target in targets:
        await _check_target(engine, target)
    checking = Check(subject, targets, runs=runs, modes=modes, seed=body.seed)
    return EventStream(_events(service, subject, checking), {})


async def _check_target(engine: AsyncEngine, target: Target) -> None:
    """Refuse what cannot be served, before the stream begins."""
    ids: Sequence[int]
    if isinstance(target.prompt, str):
        [ids] = await tokenize(engine, [target.prompt], "prompt")
    else:
        ids = target.prompt
    check_request(ids, sampling(target.params), engine.info)


async def _events(
    service: Service, subject: AsyncEngineSubject, checking: Check
) -> AsyncGenerator[bytes, None]:
    """Yield what a check tells from its thread; closing this ends the check."""
    with service.answering(), service.checking():
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Progress | CheckResult | Exception] = asyncio.Queue()

        def run() -> None:
            try:
                for progress in checking.progress():
                    loop.call_soon_threadsafe(told.put_nowait, progress)
                loop.call_soon_threadsafe(told.put_nowait, checking.result())
            except CancelledError:
                pass
            except Exception as error:
                loop.call_soon_threadsafe(told.put_nowait, error)

        thread = asyncio.create_task(asyncio.to_thread(run))
        try:
            while True:
                news = await told.get()
                if isinstance(news, Exception):
                    raise _cause(news)
                if isinstance(news, CheckResult):
                    service.metrics.check_mismatches += sum(
                        prompt.divergent_runs
                        for mode in news.by_mode.values()
                        if mode.mode == "deterministic"
                        for prompt in mode.prompts
                    )
                    yield event(news.to_json())
                    return
                yield event({"progress": _progress(news)})
        finally:
            subject.cancel()
            await asyncio.wait((thread,))


def _cause(error: Exception) -> Exception:
    """Return what made a load fail: several of its requests may have failed at once."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "mode": progress.mode,
        "loads": progress.loads,
        "runs": progress.runs,
        "total": progress.total,
        "unique_digests": progress.unique_digests,
        "divergent_runs": progress.divergent_runs,
        "seconds": round(progress.seconds, 3),
    }
