"""A choice of ``/v1/chat/completions``, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detinfer.engine.outputs import RequestOutput
from detinfer.server.api.openai.echo import Echo
from detinfer.server.api.openai.telling import Telling, TellingChoice
from detinfer.server.api.openai.tools.pieces import Piece, Reader
from detinfer.server.api.openai.tools.reading import Reading
from detinfer.server.api.openai.tools.spelling import Spelling
from detinfer.server.api.token_texts import TokenTexts
from detinfer.server.reply import Value


class ChatChoice(TellingChoice):
    """One choice of ``/v1/chat/completions``.

    Args:
        index, texts, telling, prompt_token_ids, echo: as ``TellingChoice`` has them.
        reading: how its text is read.
        reader: what reads it.
        answer_id: of the answer it is a choice of.
    """

    _logprobs: list[Value] | None = None

    def __init__(
        self,
        index: int,
        texts: TokenTexts,
        telling: Telling,
        prompt_token_ids: Sequence[int],
        echo: Echo | None,
        reading: Reading,
        reader: Reader,
        answer_id: str,
    ) -> None:
        super().__init__(index, texts, telling, prompt_token_ids, echo)
        self._reading, self._reader = reading, reader
        self._spelling = Spelling(f"{answer_id}/{index}", reading.id_length)
        self._pieces: list[Piece] = []

    def events(self, output: RequestOutput) -> Iterator[Value]:
        """Yield the chunks that an increment makes: the role first, the reason to end last."""
        calls = self._reading.calling is not None
        if self._arrive(output):
            yield self._chunk({"role": "assistant", "content": None if calls else ""}, None)
            if self._echo is not None:
                yield self._chunk({"content": self._echo.text}, None)
        logprobs, ids = self._entries(output), self._ids(output.token_ids)
        deltas = [self._spelling.delta(piece) for piece in self._read(output)]
        if not deltas and (logprobs or any(ids.values())):
            deltas = [{} if calls else {"content": ""}]
        for delta in deltas:
            yield {**self._chunk(delta, logprobs), **ids}
            logprobs, ids = None, {}
        if output.finish_reason is not None:
            yield {**self._chunk({}, None), **self._end(output, self._reason(output))}

    def add(self, output: RequestOutput) -> None:
        """Append one increment."""
        if self._arrive(output) and self._echo is not None:
            self._pieces.append(Piece("content", self._echo.text))
        self._pieces += self._read(output)
        self._token_ids += output.token_ids
        logprobs = self._entries(output)
        if logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += logprobs

    def value(self) -> Value:
        """Return the finished choice."""
        assert self.last is not None
        message = self._spelling.message(self._pieces, self._reading.tells_reasoning)
        return {
            "index": self.index,
            "message": message,
            "logprobs": _content(self._logprobs),
            **self._ids(self._token_ids),
            **self._end(self.last, self._reason(self.last)),
        }

    def _read(self, output: RequestOutput) -> list[Piece]:
        pieces = self._reader.push(output.text)
        if output.finish_reason is not None:
            pieces += self._reader.finish()
        if self._reading.tells_reasoning:
            return pieces
        return [piece for piece in pieces if piece.kind != "reasoning"]

    def _reason(self, output: RequestOutput) -> str | None:
        called = self._spelling.calls and output.finish_reason == "stop"
        return "tool_calls" if called else output.finish_reason

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
