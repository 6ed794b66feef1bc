"""Our own objects: an answer whole, and as events with what is new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detinfer.engine.outputs import RequestOutput
from detinfer.logprobs import TokenLogprob
from detinfer.server.reply import Value, proof


class GenerateAnswer:
    """One answer, as its increments come.

    Args:
        place: what an event says of its answer's place among several.
        system_fingerprint: of the engine.

    Attributes:
        receipt: see ``Answer``.
    """

    def __init__(self, place: Value, system_fingerprint: str) -> None:
        self._place = place
        self._fingerprint = system_fingerprint
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Value] | None = None
        self._last: RequestOutput | None = None
        self.receipt: Value = {}

    def add(self, output: RequestOutput) -> None:
        """Append one increment."""
        self._texts.append(output.text)
        self._token_ids += output.token_ids
        if output.logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += _logprobs(output.logprobs)
        self._last = output

    def events(self, output: RequestOutput) -> Iterator[Value]:
        """Yield what is new, and at the end everything else."""
        if output.token_ids or output.text:
            delta = {**self._place, "text": output.text, "output_ids": output.token_ids}
            if output.logprobs is not None:
                delta["logprobs"] = _logprobs(output.logprobs)
            yield delta
        if output.finish_reason is not None:
            self._last = output
            self._logprobs = None if output.logprobs is None else []
            yield {**self._place, **self.value()}

    def value(self) -> Value:
        """Return the finished answer, or what a stream has not told of it."""
        last = self._last
        assert last is not None
        return {
            "id": last.request_id,
            "text": "".join(self._texts),
            "output_ids": self._token_ids,
            "finish_reason": last.finish_reason,
            **proof(last, self._fingerprint),
            **self.receipt,
            "usage": {
                "prompt_tokens": last.prompt_tokens,
                "completion_tokens": last.completion_tokens,
                "cached_tokens": last.cached_tokens,
            },
            "logprobs": self._logprobs,
        }


def _logprobs(logprobs: Sequence[TokenLogprob]) -> list[Value]:
    return [{"token_id": one.token_id, "logprob": one.logprob, "top": one.top} for one in logprobs]
