"""TGI's objects: an answer whole and as events, its tokens and details."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.outputs import RequestOutput
from detinfer.logprobs import TokenLogprob
from detinfer.server.api.tgi.body import TGICall
from detinfer.server.api.tgi.text_pieces import TextPieces
from detinfer.server.api.token_texts import token_texts
from detinfer.server.generation import Job
from detinfer.server.reply import Value, proof


class TGIAnswer:
    """One answer, as its increments come.

    Args:
        call: what was asked for.
        job: what the engine was asked for.
        prompt: the prompt's text, which comes first if the call says so.
        engine: gives it.

    Attributes:
        receipt: see ``Answer``.
    """

    def __init__(self, call: TGICall, job: Job, prompt: str, engine: AsyncEngine) -> None:
        self._call, self._texts = call, token_texts(engine.tokenizer)
        self._prompt_token_ids = job.prompt_token_ids
        self._fingerprint = engine.info.system_fingerprint
        self._eos = () if job.params.ignore_eos else engine.info.eos_token_ids
        self._pieces = TextPieces(engine.tokenizer, job.prompt_token_ids, job.params)
        self._text = [prompt] if call.full_text else []
        self._prefill: list[Value] = []
        self._tokens: list[Value] = []
        self._top: list[list[Value]] = []
        self._last: RequestOutput | None = None
        self.receipt: Value = {}

    def add(self, output: RequestOutput) -> None:
        """Append one increment."""
        self._last = output
        self._text.append(output.text)
        if output.prompt_logprobs is not None:
            self._prefill = self._prompt_tokens(output.prompt_logprobs)
        entries = output.logprobs or []
        ended = output.finish_reason is not None
        pieces = self._pieces.add([one.token_id for one in entries], output.text, ended)
        for one, piece in zip(entries, pieces, strict=True):
            special = one.token_id in self._texts.special
            named = piece or (self._texts.text_of(one.token_id) if special else "")
            self._tokens.append(self._token(one.token_id, one.logprob, named))
            self._top.append([self._token(*pair) for pair in one.top])

    def events(self, output: RequestOutput) -> Iterator[Value]:
        """Yield an event for each token of an increment; the answer's last one has all of it."""
        start = len(self._tokens)
        self.add(output)
        for index in range(start, len(self._tokens)):
            ended = output.finish_reason is not None and index == len(self._tokens) - 1
            yield {
                "index": index + 1,
                "token": self._tokens[index],
                **({"top_tokens": self._top[index]} if self._call.top_tokens else {}),
                "generated_text": "".join(self._text) if ended else None,
                "details": self._end() | {"input_length": output.prompt_tokens} if ended else None,
                **(proof(output, self._fingerprint) | self.receipt if ended else {}),
            }

    def value(self) -> Value:
        """Return the finished answer, without details."""
        assert self._last is not None
        text = "".join(self._text)
        return {"generated_text": text, **proof(self._last, self._fingerprint), **self.receipt}

    def details(self) -> Value:
        """Return how the finished answer came about."""
        details = self._end() | {"prefill": self._prefill, "tokens": self._tokens}
        return details | ({"top_tokens": self._top} if self._call.top_tokens else {})

    @property
    def likelihood(self) -> float:
        """The mean log-probability of the tokens, added up from the first one on."""
        return float(sum(one["logprob"] for one in self._tokens)) / len(self._tokens)

    def _end(self) -> Value:
        last = self._last
        assert last is not None
        reason = "length"
        if last.finish_reason == "stop":
            reason = "eos_token" if self._tokens[-1]["id"] in self._eos else "stop_sequence"
        return {
            "finish_reason": reason,
            "generated_tokens": last.completion_tokens,
            "seed": last.seed,
        }

    def _token(self, token_id: int, logprob: float, text: str | None = None) -> Value:
        return {
            "id": token_id,
            "text": self._texts.text_of(token_id) if text is None else text,
            "logprob": logprob,
            "special": token_id in self._texts.special,
        }

    def _prompt_tokens(self, entries: Sequence[TokenLogprob]) -> list[Value]:
        logprobs = [None, *(one.logprob for one in entries)]
        return [
            {"id": token_id, "text": self._texts.text_of(token_id), "logprob": logprob}
            for token_id, logprob in zip(self._prompt_token_ids, logprobs, strict=True)
        ]


def tgi_values(call: TGICall, answers: Sequence[TGIAnswer]) -> list[Value]:
    """Return the finished answers, of each ``best_of`` the best one."""
    values = []
    for start in range(0, len(answers), call.best_of):
        group = answers[start : start + call.best_of]
        best = max(group, key=lambda answer: answer.likelihood) if call.best_of > 1 else group[0]
        value = best.value()
        if call.details:
            value["details"] = best.details()
            if call.best_of > 1:
                value["details"]["best_of_sequences"] = [
                    one.value() | one.details() for one in group if one is not best
                ]
        values.append(value)
    return values
