"""The real engine on a tiny model, in this process, behind AsyncEngine's interface."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fake_engine import byte_tokenizer
from tiny_runner import TinyModelRunner

from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.outputs import RequestOutput
from detinfer.params import SamplingParams


class TinyEngine:
    """Steps whenever a consumer waits for an output.

    Args:
        speculation: whether the tiny model's tokens are guessed.
        engine: another one than the tiny model's.

    Attributes:
        most: tokens of the longest increment so far.
    """

    def __init__(self, *, speculation: bool = True, engine: Engine | None = None) -> None:
        self.most = 0
        if engine is None:
            runner = TinyModelRunner(num_pages=64)
            runner.tokenizer = byte_tokenizer()
            engine = Engine(EngineConfig(speculation=speculation), runner)
        self._engine = engine
        self._outputs: dict[str, deque[RequestOutput]] = {}
        self.info, self.tokenizer = engine.info, engine.tokenizer
        self.state = "ready"
        self.capacity = 128

    async def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        request_id: str,
        cache_salt: str = "",
        answer: Sequence[int] = (),
    ) -> AsyncGenerator[RequestOutput, None]:
        own = self._outputs[request_id] = deque()
        self._engine.add_request(request_id, prompt_token_ids, params, cache_salt, answer)
        try:
            while True:
                while not own:
                    for output in self._engine.step():
                        self._outputs[output.request_id].append(output)
                    await asyncio.sleep(0)
                output = own.popleft()
                self.most = max(self.most, len(output.token_ids))
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._engine.abort(request_id)
            del self._outputs[request_id]

    async def stats(self) -> dict[str, Any]:
        return self._engine.stats()
