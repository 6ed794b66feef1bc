"""A trivial engine behind AsyncEngine's interface, for tests of the HTTP side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from hashlib import sha256
from typing import Any

from detinfer.engine.outputs import EngineInfo, RequestOutput, TokenLogprob
from detinfer.errors import EngineDeadError, QueueFullError, RequestError
from detinfer.params import SamplingParams

INFO = EngineInfo(
    model_name="fake-model",
    max_model_len=256,
    vocab_size=256,
    eos_token_ids=(0,),
    num_pages=8,
    max_num_seqs=4,
    allow_fast=True,
    plan="fused",
    dtype="float32",
    numerics="portable",
    fingerprint={"weights": "w" * 8, "contract": "portable-1"},
    system_fingerprint="detinfer-0.1.0-portable-1-0123456789ab",
)


class ByteTokenizer:
    """One token a byte."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


class FakeEngine:
    """Answers with the letters after the sum of the prompt's tokens.

    Attributes:
        delay: seconds between tokens.
        fail_after: tokens before the engine gives up on a request.
        die_after: tokens before the engine dies.
        running: requests that are neither finished nor aborted.
        aborted: ids of requests whose consumer went away.
    """

    def __init__(
        self,
        *,
        delay: float = 0.0,
        fail_after: int | None = None,
        die_after: int | None = None,
        queue_full: bool = False,
    ) -> None:
        self.info = INFO
        self.tokenizer = ByteTokenizer()
        self.state = "ready"
        self.delay = delay
        self.fail_after = fail_after
        self.die_after = die_after
        self.queue_full = queue_full
        self.running: dict[str, SamplingParams] = {}
        self.aborted: list[str] = []
        self.prompts: list[list[int]] = []

    async def generate(
        self, prompt_token_ids: list[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        if self.queue_full:
            raise QueueFullError("the queue is full: 256 requests wait", retry_after=3)
        if request_id in self.running:
            raise AssertionError(f"request id {request_id} is used twice")
        if params.stop_token_ids == (13,):
            raise RequestError("stop_token_ids: 13 is unlucky", "stop_token_ids")
        self.running[request_id] = params
        self.prompts.append(prompt_token_ids)
        finished = False
        try:
            for count in range(1, (params.max_tokens or 0) + 1):
                await asyncio.sleep(self.delay)
                if self.state == "dead":
                    raise EngineDeadError("the engine process ended")
                if self.die_after is not None and count > self.die_after:
                    self.state = "dead"
                    raise EngineDeadError("the engine process ended")
                output = self._increment(request_id, prompt_token_ids, params, count)
                finished = output.finish_reason is not None
                yield output
                if finished:
                    return
        finally:
            del self.running[request_id]
            if not finished:
                self.aborted.append(request_id)

    def _increment(
        self, request_id: str, prompt: list[int], params: SamplingParams, count: int
    ) -> RequestOutput:
        token = 97 + (sum(prompt) + count) % 26
        failed = self.fail_after is not None and count > self.fail_after
        last = failed or count == params.max_tokens
        return RequestOutput(
            request_id=request_id,
            text="" if failed else chr(token),
            token_ids=[] if failed else [token],
            logprobs=None
            if params.logprobs is None
            else [TokenLogprob(token, -0.5, [(token, -0.5)] * params.logprobs)],
            finish_reason="error" if failed else "length" if last else None,
            digest=sha256(bytes([*prompt, count])).hexdigest() if last else None,
            seed=params.seed,
            deterministic=params.deterministic,
            prompt_tokens=len(prompt),
            completion_tokens=count,
            error="logits: NaN at token 3" if failed else None,
        )

    async def stats(self) -> dict[str, Any]:
        return {"running": len(self.running), "waiting": 0}

    async def shutdown(self, timeout: float) -> None:
        self.state = "dead"
        async with asyncio.timeout(5):
            while self.running:
                await asyncio.sleep(0.01)
