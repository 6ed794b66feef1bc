"""From jobs to the engine's outputs: start, merge, abort."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import ClassVar

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.outputs import RequestOutput
from detinfer.params import PoolingParams, SamplingParams
from detinfer.server.errors import GenerationError, UnavailableError
from detinfer.server.http.exchange import observing


@dataclass(frozen=True)
class Job:
    """One answer of a call, ready for the engine."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    cache_salt: str = ""
    answer: Sequence[int] = ()  # what it is expected to be


@dataclass(frozen=True)
class Pooled:
    """One vector of a call, ready for the engine."""

    request_id: str
    prompt_token_ids: list[int]
    params: PoolingParams
    cache_salt: str = ""
    answer: ClassVar[Sequence[int]] = ()


Outputs = AsyncGenerator[list[tuple[int, "RequestOutput"]], None]


def run_jobs(engine: AsyncEngine, jobs: Sequence[Job | Pooled]) -> Outputs:
    """Whatever outputs are ready, as (job index, output), until every job has finished.

    Closing the generator, or an error in one job, aborts them all.

    Raises:
        GenerationError: the engine gave up on a job.
        DetinferError: the engine refused a job or died.
    """
    return _one(engine, jobs[0]) if len(jobs) == 1 else _merged(engine, jobs)


async def _one(engine: AsyncEngine, job: Job | Pooled) -> Outputs:
    outputs = engine.generate(
        job.prompt_token_ids,
        job.params,
        job.request_id,
        cache_salt=job.cache_salt,
        answer=job.answer,
    )
    with observing(job.params.deterministic) as observe:
        async with aclosing(outputs):
            async for output in outputs:
                observe(output)
                if output.finish_reason == "error":
                    raise GenerationError(output.error or "the engine gave up on this request")
                if output.finish_reason == "abort" and output.error is not None:
                    raise UnavailableError(output.error, "draining")
                yield [(0, output)]


async def _merged(engine: AsyncEngine, jobs: Sequence[Job | Pooled]) -> Outputs:
    ready: asyncio.Queue[tuple[int, RequestOutput] | BaseException] = asyncio.Queue()

    async def pump(index: int, job: Job | Pooled) -> None:
        try:
            async with aclosing(_one(engine, job)) as batches:
                async for [(_, output)] in batches:
                    ready.put_nowait((index, output))
        except Exception as error:
            ready.put_nowait(error)

    pumps = [asyncio.create_task(pump(index, job)) for index, job in enumerate(jobs)]
    unfinished = len(jobs)
    try:
        while unfinished:
            items = [await ready.get()]
            while not ready.empty():
                items.append(ready.get_nowait())
            batch = []
            for item in items:
                if isinstance(item, BaseException):
                    raise item
                batch.append(item)
                unfinished -= item[1].finish_reason is not None
            yield batch
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
