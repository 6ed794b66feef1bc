"""SGLang's objects: an answer whole, and as events with the text so far."""

from __future__ import annotations

from collections.abc import Iterable

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.outputs import RequestOutput
from detinfer.logprobs import TokenLogprob
from detinfer.server.api.sglang.body import SGLangCall
from detinfer.server.api.token_texts import token_texts
from detinfer.server.generation import Job
from detinfer.server.reply import Value, proof

Entry = tuple[float | None, int, str | None]


class SGLangAnswer:
    """One answer, as its increments come.

    Args:
        call: what was asked for.
        job: what the engine was asked for.
        name: the answer's id.
        index: among the answers.
        engine: gives it.

    Attributes:
        receipt: see ``Answer``.
    """

    def __init__(
        self, call: SGLangCall, job: Job, name: str, index: int, engine: AsyncEngine
    ) -> None:
        self._call, self._name = call, name
        self._place = {"index": index} if call.many else {}
        self._texts = token_texts(engine.tokenizer)
        self._fingerprint = engine.info.system_fingerprint
        self._prompt_token_ids = job.prompt_token_ids
        self._text = ""
        self._output_ids: list[int] = []
        self._output: list[TokenLogprob] = []
        self._input: list[TokenLogprob] = []
        self._last: RequestOutput | None = None
        self.receipt: Value = {}

    def add(self, output: RequestOutput) -> None:
        """Append one increment."""
        self._last = output
        self._input += output.prompt_logprobs or []
        if not self._call.prompt_only:
            self._text += output.text
            self._output_ids += output.token_ids
            self._output += output.logprobs or []

    def events(self, output: RequestOutput) -> Iterable[Value]:
        """Append one increment, for the event with the answer so far."""
        self.add(output)
        return (self.value() | self._place,)

    def value(self) -> Value:
        """Return the answer so far; log-probabilities and proof once it has ended."""
        last = self._last
        assert last is not None
        tokens = 0 if self._call.prompt_only else last.completion_tokens
        meta = {
            "id": self._name,
            "finish_reason": self._finish_reason(last, tokens),
            "prompt_tokens": last.prompt_tokens,
            "completion_tokens": tokens,
            "cached_tokens": last.cached_tokens,
        }
        if last.finish_reason is not None:
            meta |= proof(last, self._fingerprint) | self.receipt
            if self._call.params.logprobs is not None:
                meta |= self._logprobs()
        value = {"text": self._text, "output_ids": self._output_ids, "meta_info": meta}
        return value | (
            {"prompt_token_ids": self._prompt_token_ids} if self._call.with_prompt else {}
        )

    def _finish_reason(self, last: RequestOutput, tokens: int) -> Value | None:
        if last.finish_reason == "length" or (last.finish_reason and self._call.prompt_only):
            return {"type": "length", "length": tokens}
        if last.finish_reason == "stop":
            return {"type": "stop", "matched": last.stop_reason}
        return None if last.finish_reason is None else {"type": last.finish_reason}

    def _logprobs(self) -> Value:
        """Those of the answer, and of the prompt from the token on that was asked for."""
        start = self._call.logprob_start or 0
        known = self._input[max(start - 1, 0) :]  # the prompt's first token has none
        first = (
            [self._entry(self._prompt_token_ids[0], None)] if self._call.logprob_start == 0 else []
        )
        values: Value = {
            "input_token_logprobs": first + self._entries(known),
            "output_token_logprobs": self._entries(self._output),
        }
        if self._call.params.logprobs:
            values["input_top_logprobs"] = [None for _ in first] + self._tops(known)
            values["output_top_logprobs"] = self._tops(self._output)
        return values

    def _entries(self, entries: Iterable[TokenLogprob]) -> list[Entry]:
        return [self._entry(one.token_id, one.logprob) for one in entries]

    def _tops(self, entries: Iterable[TokenLogprob]) -> list[list[Entry] | None]:
        return [[self._entry(*pair) for pair in one.top] for one in entries]

    def _entry(self, token_id: int, logprob: float | None) -> Entry:
        text = self._texts.text_of(token_id) if self._call.with_texts else None
        return logprob, token_id, text
