"""From prompts to the engine's outputs: tokenise, start, merge, collect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from detinfer.engine.validation import encode_text
from detinfer.errors import RequestError
from detinfer.params import SamplingParams
from detinfer.server.errors import GenerationError

if TYPE_CHECKING:
    from detinfer.engine.async_engine import AsyncEngine
    from detinfer.engine.outputs import RequestOutput, TokenLogprob

# Shorter texts take less time to tokenise than a thread takes to start on them.
INLINE_CHARACTERS = 2000


@dataclass(frozen=True)
class Job:
    """One prompt of a call, ready for the engine."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams


async def tokenize(engine: AsyncEngine, texts: Sequence[str], field: str) -> list[list[int]]:
    """Token ids of raw texts, special tokens as the tokenizer adds them by default.

    Long texts are encoded in a thread: the tokenizer lets go of the interpreter lock meanwhile.
    """
    encode = partial(encode_text, engine.tokenizer, field=field)
    if sum(map(len, texts)) <= INLINE_CHARACTERS:
        encoded = [encode(text) for text in texts]
    else:
        encoded = [await asyncio.to_thread(encode, text) for text in texts]
    if not all(encoded):
        raise RequestError(f"{field}: got text without a single token", field)
    return encoded


Outputs = AsyncGenerator[list[tuple[int, "RequestOutput"]], None]


async def run_jobs(engine: AsyncEngine, jobs: Sequence[Job]) -> Outputs:
    """Whatever outputs are ready, as (job index, output), until every job has finished.

    Closing the generator, or an error in one job, aborts them all.

    Raises:
        GenerationError: the engine gave up on a job.
        DetinferError: the engine refused a job or died.
    """
    source = _one(engine, jobs[0]) if len(jobs) == 1 else _merged(engine, jobs)
    async with aclosing(source) as batches:
        async for batch in batches:
            for _, output in batch:
                if output.finish_reason == "error":
                    raise GenerationError(output.error or "the engine gave up on this request")
            yield batch


async def _one(engine: AsyncEngine, job: Job) -> Outputs:
    outputs = engine.generate(job.prompt_token_ids, job.params, job.request_id)
    async with aclosing(outputs):
        async for output in outputs:
            yield [(0, output)]


async def _merged(engine: AsyncEngine, jobs: Sequence[Job]) -> Outputs:
    ready: asyncio.Queue[tuple[int, RequestOutput] | BaseException] = asyncio.Queue()

    async def pump(index: int, job: Job) -> None:
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


class Answer:
    """One job's increments, put together."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[dict[str, Any]] | None = None
        self.last: RequestOutput | None = None

    def add(self, output: RequestOutput) -> None:
        """Append one increment."""
        self._texts.append(output.text)
        self._token_ids.extend(output.token_ids)
        if output.logprobs is not None:
            self._logprobs = (self._logprobs or []) + logprob_values(output.logprobs)
        self.last = output

    def value(self, system_fingerprint: str) -> dict[str, Any]:
        """The finished answer as ``/generate`` gives it."""
        assert self.last is not None
        return answer_value(
            self.last, "".join(self._texts), self._token_ids, self._logprobs, system_fingerprint
        )


def answer_value(
    last: RequestOutput,
    text: str,
    token_ids: list[int],
    logprobs: list[dict[str, Any]] | None,
    system_fingerprint: str,
) -> dict[str, Any]:
    """The fields of a finished answer, from its last increment."""
    return {
        "id": last.request_id,
        "text": text,
        "output_ids": token_ids,
        "finish_reason": last.finish_reason,
        "deterministic": last.deterministic,
        "seed": last.seed,
        "digest": last.digest,
        "system_fingerprint": system_fingerprint,
        "usage": {
            "prompt_tokens": last.prompt_tokens,
            "completion_tokens": last.completion_tokens,
            "cached_tokens": last.cached_tokens,
        },
        "logprobs": logprobs,
    }


def logprob_values(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities as JSON values."""
    return [
        {"token_id": one.token_id, "logprob": one.logprob, "top": [list(pair) for pair in one.top]}
        for one in logprobs
    ]
