"""Loads on a running server: the same requests, from as many clients as a load has rows."""

from __future__ import annotations

import dataclasses
from typing import Any

from detinfer.check.answer import Answer, ExactLogprob
from detinfer.check.arrivals import TRIES, answers
from detinfer.check.client import TIMEOUT, Client
from detinfer.check.grammars import PROBE
from detinfer.check.load import Load, Row
from detinfer.check.target import Bounds, sampling
from detinfer.config import longest_sequence
from detinfer.errors import DetinferError, RequestError
from detinfer.params import SamplingParams


class ServerSubject:
    """Plays loads on a server, which may be serving others meanwhile.

    Pages, chunks and limits are the server's own; what is drawn is who asks for what, and when.

    Args:
        url: where the server is.
        concurrency: most requests in a load.
        api_key: its key, if it has one.
        timeout: seconds without a byte from the server.

    Raises:
        ConfigError: an unusable address, or a key the server does not take.
        DetinferError: the server cannot be reached, is not ready or not a detinfer server.
    """

    tries = TRIES

    def __init__(
        self,
        url: str,
        concurrency: int = 32,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client = Client(url, api_key, timeout)
        self.source = self._client.url
        info = self._client.get("/server_info")
        try:
            engine = info["engine"]
            self.fingerprint = str(info["system_fingerprint"])
            parts = info.get("fingerprint", {})
            self.parts = {str(name): str(part) for name, part in parts.items()}
            self.bounds = Bounds(
                vocab_size=int(engine["vocab_size"]),
                longest=longest_sequence(int(engine["max_model_len"]), int(engine["num_pages"])),
                max_rows=concurrency,
                allow_fast=bool(engine["allow_fast"]),
                can_constrain=self._can_constrain(),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DetinferError(
                f"{self.source}: not a detinfer server (/server_info lacks what it should tell)"
            ) from None

    def stats(self) -> dict[str, int]:
        """See ``Subject.stats``."""
        stats = self._client.get("/server_info").get("stats", {})
        return {str(name): value for name, value in stats.items() if isinstance(value, int)}

    def play(self, load: Load) -> dict[int, Answer]:
        """See ``Subject.play``."""
        return answers(load, self._ask)

    def _can_constrain(self) -> bool:
        try:
            self._client.post("/generate", {"input_ids": [0], **_fields(PROBE)})
        except RequestError:
            return False  # of an older release, or no grammar compiles for its tokenizer
        return True

    def _ask(self, row: Row) -> Answer | None:
        field = "prompt" if isinstance(row.prompt, str) else "input_ids"
        body = {field: row.prompt, **_fields(sampling(row.params))}
        if row.abort_after is not None:
            self._client.post_and_leave("/generate", body, row.abort_after)
            return None
        value = self._client.post("/generate", body)
        return None if row.target is None else self._read(value, row)

    def _read(self, value: Any, row: Row) -> Answer:
        params = sampling(row.params)
        asked = params.logprobs is not None
        try:
            answer = Answer(
                tuple(value["output_ids"]),
                value["text"],
                value["finish_reason"],
                value["digest"],
                tuple(map(_exact, value["logprobs"])) if asked else None,
            )
            deterministic, fingerprint = value["deterministic"], value["system_fingerprint"]
        except (KeyError, TypeError):
            raise DetinferError(
                f"{self.source}: not a detinfer server (/generate answered without "
                f"{'log-probabilities' if 'digest' in value else 'a digest'})"
            ) from None
        if answer.finish_reason not in ("stop", "length") or not answer.digest:
            without = "" if answer.digest else " without a digest"
            raise DetinferError(
                f"{self.source}: an answer ended with {answer.finish_reason}{without}"
            )
        if deterministic is not params.deterministic:
            raise DetinferError(
                f"{self.source}: asked for deterministic {params.deterministic}, "
                f"got {deterministic}"
            )
        if fingerprint != self.fingerprint:
            raise DetinferError(
                f"{self.source}: its fingerprint changed from {self.fingerprint} to {fingerprint}"
            )
        return answer


def _exact(value: Any) -> ExactLogprob:
    return ExactLogprob.of(value["token_id"], value["logprob"], value["top"])


def _fields(params: SamplingParams) -> dict[str, Any]:
    """Return a body of /generate: all that is not its default, or that a server may default."""
    plain = dataclasses.asdict(SamplingParams())
    given = dataclasses.asdict(params)
    fields = {name: value for name, value in given.items() if value != plain[name]}
    if "logit_bias" in fields:
        fields["logit_bias"] = dict(params.logit_bias)  # an object in JSON
    return fields | {"deterministic": params.deterministic}
