"""A choice of ``/v1/completions``, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detinfer.engine.detokenizer import Detokenizer
from detinfer.engine.outputs import RequestOutput
from detinfer.logprobs import TokenLogprob
from detinfer.server.api.openai.echo import Echo, Offsets
from detinfer.server.api.openai.telling import TellingChoice
from detinfer.server.reply import Value


class CompletionChoice(TellingChoice):
    """One choice of ``/v1/completions``."""

    _offsets: Offsets | None = None  # made for the first token whose place is asked for
    _logprobs: Value | None = None

    def events(self, output: RequestOutput) -> Iterator[Value]:
        """Yield the chunk that an increment makes, if it has anything to say."""
        first = self.last is None
        text, token_ids, logprobs = self._news(output)
        told = self.of_prompt() if first else {}
        ids = self._ids(token_ids)
        if text or logprobs or told or any(ids.values()) or output.finish_reason is not None:
            yield {**self._value(output, text, logprobs), **told, **ids}

    def add(self, output: RequestOutput) -> None:
        """Append one increment."""
        text, token_ids, logprobs = self._news(output)
        self._text.append(text)
        self._token_ids += token_ids
        if logprobs is not None:
            self._logprobs = _joined(self._logprobs, logprobs)

    def value(self) -> Value:
        """Return the finished choice."""
        assert self.last is not None
        return {
            **self._value(self.last, "".join(self._text), self._logprobs),
            **self.of_prompt(),
            **self._ids(self._token_ids),
        }

    def _value(self, output: RequestOutput, text: str, logprobs: Value | None) -> Value:
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            **self._end(output, "length" if self._telling.prompt_only else output.finish_reason),
        }

    def _news(self, output: RequestOutput) -> tuple[str, Sequence[int], Value | None]:
        """Return what an increment adds to the text, the tokens and the log-probabilities."""
        text, token_ids, entries = output.text, output.token_ids, output.logprobs
        if self._telling.prompt_only:
            text, token_ids, entries = "", [], None if entries is None else []
        echo = self._echo if self._arrive(output) else None
        logprobs = self._prompt_entries(echo, output) if echo and entries is not None else None
        if entries is not None:
            offsets = [self._offset(one.token_id) for one in entries]
            logprobs = _joined(logprobs, self._entries(entries, offsets))
        return f"{echo.text}{text}" if echo else text, token_ids, logprobs

    def _offset(self, token_id: int) -> int:
        if self._offsets is None:
            left_out = () if self._telling.special else self._texts.special
            detokenizer = Detokenizer(self._texts.decode, self._prompt, left_out)
            self._offsets = Offsets(detokenizer, len(self._echo.text) if self._echo else 0)
        return self._offsets.next(token_id)

    def _entries(self, entries: Sequence[TokenLogprob], offsets: Sequence[int]) -> Value:
        return {
            "tokens": [self._name(one.token_id) for one in entries],
            "token_logprobs": [one.logprob for one in entries],
            "top_logprobs": [self._top(one) for one in entries],
            "text_offset": list(offsets),
        }

    def _prompt_entries(self, echo: Echo, output: RequestOutput) -> Value:
        assert echo.offsets is not None
        logprobs: Value = {
            "tokens": [self._name(self._prompt[0])],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": echo.offsets[:1],
        }
        # More may have been asked for at each place than belongs here.
        most = self._telling.logprobs or 0
        scores = [one._replace(top=one.top[:most]) for one in output.prompt_logprobs or ()]
        return _joined(logprobs, self._entries(scores, echo.offsets[1:]))

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        # Likeliest first: of tokens that spell alike the likeliest stands, so that the largest
        # value is the maximum itself.
        top: dict[str, float] = {}
        for token_id, logprob in (*one.top, (one.token_id, one.logprob)):
            top.setdefault(self._name(token_id), logprob)
        return top


def _joined(first: Value | None, second: Value) -> Value:
    """Return the lists of both, in the first's where there is one."""
    for name in first or ():
        first[name] += second[name]  # type: ignore[index]
    return first or second
