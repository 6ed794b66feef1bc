"""OpenAI's objects: the choices of both routes, whole and in chunks, and the usage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from detinfer.engine.detokenizer import Detokenizer
from detinfer.server.api.openai.telling import Telling, TellingChoice, Value
from detinfer.server.api.token_texts import Echo, Offsets, TokenTexts

if TYPE_CHECKING:
    from detinfer.engine.outputs import RequestOutput
    from detinfer.logprobs import TokenLogprob


class CompletionChoice(TellingChoice):
    """One choice of ``/v1/completions``, as its increments come.

    Args:
        echo: the prompt if it is to come first, else None.
        prompt_only: whether to give nothing of the answer itself.
    """

    def __init__(
        self,
        index: int,
        texts: TokenTexts,
        telling: Telling,
        prompt_token_ids: Sequence[int],
        echo: Echo | None = None,
        prompt_only: bool = False,
    ) -> None:
        super().__init__(index, texts, telling, prompt_token_ids)
        self._echo = echo
        self._prompt_only = prompt_only
        self._offsets: Offsets | None = None  # made for the first token whose place is asked for
        self._logprobs: Value | None = None

    def chunks(self, output: RequestOutput) -> Iterator[Value]:
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

    def whole(self) -> Value:
        """Return the finished choice."""
        assert self.last is not None
        return {
            **self._value(self.last, "".join(self._text), self._logprobs),
            **self.of_prompt(),
            **self._ids(self._token_ids),
        }

    @property
    def completion_tokens(self) -> int:
        """Output tokens given so far."""
        return 0 if self._prompt_only else super().completion_tokens

    def _value(self, output: RequestOutput, text: str, logprobs: Value | None) -> Value:
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            **_end(output, "length" if self._prompt_only else output.finish_reason),
        }

    def _news(self, output: RequestOutput) -> tuple[str, Sequence[int], Value | None]:
        """Return what an increment adds to the text, the tokens and the log-probabilities."""
        text, token_ids, entries = output.text, output.token_ids, output.logprobs
        if self._prompt_only:
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
            "tokens": [self._telling.name(self._texts, one.token_id) for one in entries],
            "token_logprobs": [one.logprob for one in entries],
            "top_logprobs": [self._top(one) for one in entries],
            "text_offset": list(offsets),
        }

    def _prompt_entries(self, echo: Echo, output: RequestOutput) -> Value:
        assert echo.offsets is not None
        logprobs: Value = {
            "tokens": [self._telling.name(self._texts, self._prompt[0])],
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
            top.setdefault(self._telling.name(self._texts, token_id), logprob)
        return top


class ChatChoice(TellingChoice):
    """One choice of ``/v1/chat/completions``, as its increments come.

    Args:
        echoed: the text to begin with.
    """

    def __init__(
        self,
        index: int,
        texts: TokenTexts,
        telling: Telling,
        prompt_token_ids: Sequence[int],
        echoed: str = "",
    ) -> None:
        super().__init__(index, texts, telling, prompt_token_ids)
        self._echoed = echoed
        self._logprobs: list[Value] | None = None

    def chunks(self, output: RequestOutput) -> Iterator[Value]:
        """Yield the chunks that an increment makes: the role first, the reason to end last."""
        if self._arrive(output):
            yield self._chunk({"role": "assistant", "content": ""}, None)
            if self._echoed:
                yield self._chunk({"content": self._echoed}, None)
        logprobs, ids = self._entries(output), self._ids(output.token_ids)
        if output.text or logprobs or any(ids.values()):
            yield {**self._chunk({"content": output.text}, logprobs), **ids}
        if output.finish_reason is not None:
            yield {**self._chunk({}, None), **_end(output, output.finish_reason)}

    def add(self, output: RequestOutput) -> None:
        """Append one increment."""
        self._arrive(output)
        self._text.append(output.text)
        self._token_ids += output.token_ids
        logprobs = self._entries(output)
        if logprobs is not None:
            self._logprobs = self._logprobs or []
            self._logprobs += logprobs

    def whole(self) -> Value:
        """Return the finished choice."""
        assert self.last is not None
        text = "".join([self._echoed, *self._text])
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _content(self._logprobs),
            **self._ids(self._token_ids),
            **_end(self.last, self.last.finish_reason),
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
            "token": self._telling.name(self._texts, token_id),
            "bytes": list(self._texts.bytes_of(token_id)),
            "logprob": logprob,
        }


Choice = CompletionChoice | ChatChoice


def usage(choices: Sequence[Choice], n: int) -> Value:
    """Token counts: of each prompt once, of every answer.

    Args:
        choices: the answers so far, ``n`` to each prompt, one prompt after the other.
        n: answers to each prompt.
    """
    lasts = [choice.last for choice in choices]
    firsts = [last for last in lasts[::n] if last is not None]
    prompt = sum(last.prompt_tokens for last in firsts)
    completion = sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(last.cached_tokens for last in firsts)},
    }


def _joined(first: Value | None, second: Value) -> Value:
    """Return the lists of both, in the first's where there is one."""
    for name in first or ():
        first[name] += second[name]  # type: ignore[index]
    return first or second


def _content(logprobs: list[Value] | None) -> Value | None:
    return None if logprobs is None else {"content": logprobs, "refusal": None}


def _end(output: RequestOutput, reason: str | None) -> Value:
    """Return why a choice ended and what checks it; before its end only that it has not."""
    if output.finish_reason is None:
        return {"finish_reason": None}
    return {
        "finish_reason": reason,
        "digest": output.digest,
        "seed": output.seed,
        "deterministic": output.deterministic,
    }
