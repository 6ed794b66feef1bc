"""Loads on any OpenAI-compatible server, which is asked for no more than that interface has."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from http.client import HTTPException
from typing import Any

from detinfer.check import arrivals
from detinfer.check.answer import Answer
from detinfer.check.client import TIMEOUT, Client
from detinfer.check.load import Load, Row
from detinfer.check.openai_answer import read_answer, read_events
from detinfer.check.target import Bounds, Target, sampling
from detinfer.errors import ConfigError, DetinferError, RequestError
from detinfer.params import SamplingParams

TRIES = 4  # of a request that the server fails to answer
_PAUSE = 0.2  # seconds before the second, doubled for each later one
_TOP = 5  # log-probabilities of a token, as many as the interface has
_LARGEST = 64 << 20
_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"
# Neighbours speak in these: what ids would mean to somebody else's tokenizer, nobody knows.
_WORDS = ("the", "a", "of", "and", "to", "in", "that", "it", "was", "for", "on", "with", "as")
# What another make may answer to a field or a route that it has not.
_UNKNOWN_ROUTE, _UNKNOWN_FIELD = {404, 405, 501}, {400, 422, 501}


@dataclasses.dataclass(frozen=True)
class _Manner:
    """How a server is asked."""

    route: str
    logprobs: bool
    stream: bool


class _Refused(Exception):
    """A status that asking again does not change."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class OpenAISubject:
    """Plays loads on a server of any make, which may be serving others meanwhile.

    What it can do is tried out first: completions or chat, log-probabilities, whole answers or
    streams alone. An answer that fails for its own reasons is asked for again, a few times, and
    counted in ``troubles``.

    Args:
        url: where the server is.
        concurrency: most requests in a load.
        api_key: its key, if it has one.
        timeout: seconds without a byte from the server.

    Raises:
        ConfigError: an unusable address, or a key the server does not take.
        DetinferError: the server cannot be reached, or speaks something else.
    """

    tries = arrivals.TRIES

    def __init__(
        self,
        url: str,
        concurrency: int = 32,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client = Client(url, api_key, timeout)
        self.source = self._client.url
        self.troubles: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._last: dict[str, Any] = {}
        try:
            status, content, server = self._client.raw("GET", "/v1/models", None)
        except (OSError, HTTPException) as error:
            raise self._client.unreachable(error) from None
        try:
            self._model = str(json.loads(content)["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            if status in (401, 403):
                raise ConfigError(f"{self.source}: no key for it; set DETINFER_API_KEY") from None
            raise DetinferError(
                f"{self.source}: neither a detinfer server nor an OpenAI-compatible one "
                f"(/v1/models answered {status}, and names no model)"
            ) from None
        self._manner, told = self._try_out()
        self.fingerprint = str(told.get("system_fingerprint") or "no fingerprint")
        self.parts = {
            "model": self._model,
            "server": server or "not told",
            "route": self._manner.route,
            "log-probabilities": "told" if self._manner.logprobs else "not told",
            "answers": "streamed" if self._manner.stream else "whole",
        }
        self.bounds = Bounds(len(_WORDS), 1024, concurrency, allow_fast=False)

    def targets(self, max_tokens: int, prompts: list[str] | None = None) -> list[Target]:
        """Return what to ask: greedy, with log-probabilities if it has them; one with a seed."""
        logprobs = _TOP if self._manner.logprobs else None
        greedy = SamplingParams(max_tokens=max_tokens, logprobs=logprobs)
        if prompts:
            return [Target(prompt, greedy) for prompt in prompts]
        sampled = dataclasses.replace(greedy, temperature=1.0, seed=20)
        return [
            Target("Why does the moon look larger close to the horizon?", greedy, "question"),
            Target("def is_prime(n: int) -> bool:\n", greedy, "code"),
            Target("The last train had left an hour ago, and the", greedy, "story"),
            Target("The last train had left an hour ago, and the", sampled, "temperature, seed"),
        ]

    def stats(self) -> dict[str, int]:
        """See ``Subject.stats``; it tells none."""
        return {}

    def play(self, load: Load) -> dict[int, Answer]:
        """See ``Subject.play``."""
        return arrivals.answers(load, self._row)

    def _row(self, row: Row) -> Answer | None:
        """Return the answer of a run; None of a neighbour, who may be refused."""
        body = self._body(self._manner, row.prompt, sampling(row.params))
        if row.abort_after is not None:
            self._client.post_and_leave(self._manner.route, body, row.abort_after)
            return None
        try:
            answer = self._ask(self._manner, body)
        except _Refused as error:
            if row.target is None:
                self._count(f"neighbours refused with status {error.status}")
                return None
            raise RequestError(f"{self.source}: {error}") from None
        return None if row.target is None else answer

    def _try_out(self) -> tuple[_Manner, dict[str, Any]]:
        """Return the richest manner in which a short question is answered, and the answer."""
        params = SamplingParams(max_tokens=2, logprobs=_TOP)
        why = "no manner of asking"
        for route in (_COMPLETIONS, _CHAT):
            for logprobs, stream in ((True, False), (False, False), (True, True), (False, True)):
                manner = _Manner(route, logprobs, stream)
                try:
                    answer = self._ask(manner, self._body(manner, "Hello", params))
                except DetinferError as error:
                    if not logprobs:
                        raise
                    why = str(error)  # some have nothing better for a field they cannot serve
                    continue
                except _Refused as error:
                    why = str(error)
                    if error.status in _UNKNOWN_ROUTE:
                        break
                    if error.status not in _UNKNOWN_FIELD:
                        raise DetinferError(f"{self.source}: {error}") from None
                    continue
                told = answer.logprobs is not None
                return dataclasses.replace(manner, logprobs=told), self._last
        raise DetinferError(f"{self.source}: no OpenAI-compatible server ({why})")

    def _body(self, manner: _Manner, prompt: Any, params: SamplingParams) -> dict[str, Any]:
        """Return a request in standard fields alone."""
        if not isinstance(prompt, str):
            prompt = " ".join(_WORDS[token % len(_WORDS)] for token in prompt)
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
        }
        chat = manner.route == _CHAT
        body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        plain = SamplingParams()
        for name in ("top_p", "seed", "presence_penalty", "frequency_penalty"):
            # A seed means nothing to a greedy request, and some refuse large ones.
            if getattr(params, name) != getattr(plain, name) and params.temperature > 0:
                value = getattr(params, name)
                body[name] = value % (1 << 31) if name == "seed" else value
        if manner.logprobs and params.logprobs is not None:
            most = min(max(params.logprobs, 1), _TOP)
            body |= {"logprobs": True, "top_logprobs": most} if chat else {"logprobs": most}
        if manner.stream:
            body["stream"] = True
        return body

    def _ask(self, manner: _Manner, body: dict[str, Any]) -> Answer:
        """Return an answer, asked for a few times if need be."""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(_PAUSE * 2 ** (attempt - 1))
            try:
                status, content, _ = self._client.raw("POST", manner.route, body)
            except (OSError, HTTPException) as error:
                why = "timed out" if isinstance(error, TimeoutError) else "connection lost"
                self._count(why)
                continue
            if status == 200:
                try:
                    return self._read(content)
                except ValueError as error:
                    why = str(error)
                    self._count("not an answer")
                    continue
            why = f"status {status}: {_message(content)}"
            if status == 501 or (status < 500 and status != 429):
                raise _Refused(status, f"{manner.route} answered {why}")
            self._count(f"status {status}")
        raise DetinferError(f"{self.source}: asked {TRIES} times, {manner.route}: {why}")

    def _read(self, content: bytes) -> Answer:
        if content.lstrip().startswith((b"data:", b":", b"event:", b"id:")):
            return read_events(content.splitlines())
        value = json.loads(content)
        answer = read_answer(value)
        self._last = value
        return answer

    def _count(self, what: str) -> None:
        with self._lock:
            self.troubles[what] += 1


def _message(content: bytes) -> str:
    """Return why, of an error's body, in one line."""
    try:
        told = json.loads(content)
        told = told.get("error", told.get("detail", told))
        told = told.get("message", told) if isinstance(told, dict) else told
    except (ValueError, AttributeError):
        told = content.decode("utf-8", "replace")
    return " ".join(str(told).split())[:200]
