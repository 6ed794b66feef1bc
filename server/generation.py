"""From prompts to the engine's outputs: tokenise, start, merge, collect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.validation import encode_text, too_long
from detinfer.errors import RequestError
from detinfer.params import SamplingParams
from detinfer.server.errors import GenerationError, UnavailableError, model_not_found
from detinfer.server.http.observation import observing
from detinfer.server.service import Service

if TYPE_CHECKING:
    from detinfer.engine.async_engine import AsyncEngine
    from detinfer.engine.outputs import RequestOutput
    from detinfer.logprobs import TokenLogprob

# Shorter texts take less time to tokenise than a thread takes to start on them.
INLINE_SIZE = 2000
# Longer ones wait for one another, so that the others need not wait for them.
LARGE_SIZE = 200_000
_large = ThreadPoolExecutor(1, thread_name_prefix="large-text")

# What clients of TGI, which looks at no model's name, send where their user gave none.
NO_MODEL = ("tgi", "dummy")

MAX_HEADER_DIGESTS = 16  # the body has them all

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One answer of a call, ready for the engine."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    cache_salt: str = ""


async def aside(size: int, work: Callable[..., T], *args: Any, **options: Any) -> T:
    """Work of the tokenizer on ``size`` characters or tokens; much of it in a thread.

    It lets go of the interpreter lock meanwhile.
    """
    if size <= INLINE_SIZE:
        return work(*args, **options)
    if size <= LARGE_SIZE:
        return await asyncio.to_thread(work, *args, **options)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_large, partial(work, *args, **options))


async def tokenize(
    engine: AsyncEngine, texts: Sequence[str], field: str, add_special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of raw texts, with the special tokens that the tokenizer adds by default.

    Raises:
        RequestError: a text without a token, or one that no tokens of the model's length spell.
    """
    for text in texts:
        check_length(engine, len(text), field)
    encode = partial(
        encode_text, engine.tokenizer, field=field, add_special_tokens=add_special_tokens
    )
    encoded = [await aside(len(text), encode, text) for text in texts]
    if not all(encoded):
        raise RequestError(f"{field}: got text without a single token", field)
    return encoded


def check_length(engine: AsyncEngine, characters: int, field: str) -> None:
    """Refuse text that no tokens of the model's length spell, before it is worked on.

    Raises:
        RequestError: naming the field.
    """
    longest = engine.info.max_model_len * longest_token(engine.tokenizer)
    if characters > longest:
        raise too_long(
            engine.info.max_model_len,
            field,
            f"got {characters} characters, at most {longest} can fit",
        )


@lru_cache(maxsize=4)
def longest_token(tokenizer: Any) -> int:
    """Characters of the vocabulary's longest token."""
    return max(map(len, tokenizer.get_vocab()))


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
                if output.finish_reason == "abort" and output.error is not None:
                    raise UnavailableError(output.error, "draining")
            yield batch


class Gathering(Protocol):
    """What the outputs of one job add up to."""

    def add(self, output: RequestOutput) -> object:
        """Take one output."""


async def gather(outputs: Outputs, answers: Sequence[Gathering]) -> None:
    """Add every output to the answer of its job, until every job has finished.

    Raises:
        DetinferError: as ``run_jobs``.
    """
    async with aclosing(outputs):
        async for batch in outputs:
            for index, output in batch:
                answers[index].add(output)


async def _one(engine: AsyncEngine, job: Job) -> Outputs:
    outputs = engine.generate(
        job.prompt_token_ids, job.params, job.request_id, cache_salt=job.cache_salt
    )
    with observing(job.params.deterministic) as observe:
        async with aclosing(outputs):
            async for output in outputs:
                observe(output)
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
            self._logprobs = self._logprobs or []
            self._logprobs += logprob_values(output.logprobs)
        self.last = output

    def value(self, system_fingerprint: str) -> dict[str, Any]:
        """Return the finished answer as ``/generate`` gives it."""
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
    """Return the fields of a finished answer, from its last increment."""
    return {
        "id": last.request_id,
        "text": text,
        "output_ids": token_ids,
        "finish_reason": last.finish_reason,
        **proof(last, system_fingerprint),
        "usage": {
            "prompt_tokens": last.prompt_tokens,
            "completion_tokens": last.completion_tokens,
            "cached_tokens": last.cached_tokens,
        },
        "logprobs": logprobs,
    }


def proof(last: RequestOutput, system_fingerprint: str) -> dict[str, Any]:
    """Return what makes a finished answer comparable and repeatable, under our names."""
    return {
        "deterministic": last.deterministic,
        "seed": last.seed,
        "digest": last.digest,
        "system_fingerprint": system_fingerprint,
    }


def logprob_values(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities as JSON values."""
    return [
        {"token_id": one.token_id, "logprob": one.logprob, "top": [list(pair) for pair in one.top]}
        for one in logprobs
    ]


def digest_header(digests: Sequence[str]) -> dict[str, str]:
    """``x-detinfer-digest`` of a call's answers, unless it would be too long for proxies."""
    if len(digests) > MAX_HEADER_DIGESTS:
        return {}
    return {"x-detinfer-digest": ", ".join(digests)}


def cache_salt(request: Request) -> str:
    """Whose prefix-cache pages a request may share, as the API keys decided, since when."""
    service: Service = request.app.state.service
    return service.salted(request)


def other_model(service: Service, model: str | None) -> Response | None:
    """Return the refusal of a request that names a model which is not the one served."""
    served = service.model_id(service.ready_engine())
    return (
        None
        if model in (None, served, *NO_MODEL)
        else model_not_found(str(model), served).response()
    )
