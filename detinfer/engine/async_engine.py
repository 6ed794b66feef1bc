"""A language model's engine in a process of its own, as an event loop has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from detinfer.engine.outputs import EngineInfo, RequestOutput
from detinfer.engine.process import Add, load_engine
from detinfer.engine.remote import Remote
from detinfer.engine.validation import check_ids, check_pooling, check_request
from detinfer.params import PoolingParams, SamplingParams

_SLOTS = RequestOutput.__slots__


class AsyncEngine(Remote[EngineInfo, RequestOutput]):
    """An engine in its own process; made by ``start`` and used from one event loop."""

    output = RequestOutput
    fields = (_SLOTS.index("request_id"), _SLOTS.index("finish_reason"))
    load = staticmethod(load_engine)
    reading = "transformers.tokenization_utils_tokenizers"  # the tokenizer

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams | PoolingParams,
        request_id: str,
        cache_salt: str = "",
        answer: Sequence[int] = (),
    ) -> AsyncGenerator[RequestOutput, None]:
        """Streams a request's increments; the last one has a ``finish_reason``.

        Closing or cancelling the iterator aborts the request.

        Args:
            prompt_token_ids: the prompt.
            params: how to sample and when to end; or how to pool: then the one output has a vector.
            request_id: never used before.
            cache_salt: the prefix cache shares pages only among requests of the same salt.
            answer: what its output is expected to be, which then takes few steps to find out.

        Raises:
            RequestError: if it cannot be served as asked.
            QueueFullError: if too many requests, or prompt tokens, are open.
            GenerationTimeoutError: if it took too long from its first step on.
            EngineDeadError: if the engine is shutting down, or died.
        """

        def check() -> None:
            if isinstance(params, PoolingParams):
                check_pooling(prompt_token_ids, params, self.info)
            else:
                check_request(prompt_token_ids, params, self.info)
            if answer:
                check_ids("answer", answer, self.info)

        # The last: without waiting for a grammar.
        asked = (list(prompt_token_ids), params, cache_salt, list(answer), False)
        add = Add(request_id, asked)
        return self._outputs(add, len(prompt_token_ids) + len(answer), check)
