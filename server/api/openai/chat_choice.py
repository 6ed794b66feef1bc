"""A choice of ``/v1/chat/completions``, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator

from detinfer.engine.outputs import RequestOutput
from detinfer.server.api.openai.telling import TellingChoice, end_of
from detinfer.server.reply import Value


class ChatChoice(TellingChoice):
    """One choice of ``/v1/chat/completions``."""

    _logprobs: list[Value] | None = None

    def events(self, output: RequestOutput) -> Iterator[Value]:
        """Yield the chunks that an increment makes: the role first, the reason to end last."""
        if self._arrive(output):
            yield self._chunk({"role": "assistant", "content": ""}, None)
            if self._echo is not None:
                yield self._chunk({"content": self._echo.text}, None)
        logprobs, ids = self._entries(output), self._ids(output.token_ids)
        if output.text or logprobs or any(ids.values()):
            yield {**self._chunk({"content": output.text}, logprobs), **ids}
        if output.finish_reason is not None:
            yield {**self._chunk({}, None), **end_of(output, output.finish_reason)}

    def add(self, output: RequestOutput) -> None:
        """Append one increment."""
        if self._arrive(output) and self._echo is not None:
            self._text.append(self._echo.text)
        self._text.append(output.text)
        self._token_ids += output.token_ids
        logprobs = self._entries(output)
        if logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += logprobs

    def value(self) -> Value:
        """Return the finished choice."""
        assert self.last is not None
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": "".join(self._text), "refusal": None},
            "logprobs": _content(self._logprobs),
            **self._ids(self._token_ids),
            **end_of(self.last, self.last.finish_reason),
        }

    def _chunk(self, delta: Value, logprobs: list[Value] | None) -> Value:
        return {
            "index": self.index,
            "delta": delta,
            "logprobs": _content(logprobs),
            "finish_reason": None,
        }

    def _entries(self, output: RequestOutput) -> list[Value] | None:
        if output.logprobs is None:
            return None
        return [
            {
                **self._token(one.token_id, one.logprob),
                "top_logprobs": [self._token(*pair) for pair in one.top],
            }
            for one in output.logprobs
        ]

    def _token(self, token_id: int, logprob: float) -> Value:
        return {
            "token": self._name(token_id),
            "bytes": list(self._texts.bytes_of(token_id)),
            "logprob": logprob,
        }


def _content(logprobs: list[Value] | None) -> Value | None:
    return None if logprobs is None else {"content": logprobs, "refusal": None}
