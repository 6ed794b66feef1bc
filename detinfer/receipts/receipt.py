"""What a receipt says, and how it is written: one JSON object, each part under its own name."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detinfer.digest import DigestChain
from detinfer.engine.outputs import EngineInfo, RequestOutput
from detinfer.engine.validation import check_request
from detinfer.errors import DetinferError, RequestError
from detinfer.params import SamplingParams

FORM = "detinfer-receipt-1"
Value = dict[str, Any]

# Of no say in which tokens an answer has: what a replay asks for by itself, or does not need.
_NOT_KEPT = ("n", "checksums", "logprobs", "prompt_logprobs", "deterministic")
FIELDS = tuple(f.name for f in dataclasses.fields(SamplingParams) if f.name not in _NOT_KEPT)


class ReceiptError(DetinferError):
    """A receipt that cannot be read as one."""


@dataclass(frozen=True)
class Receipt:
    """A deterministic answer, and all that decided it.

    Attributes:
        model: what it was called where it was served.
        system_fingerprint, fingerprint: of the engine, and its parts.
        prompt_token_ids: the prompt.
        prompt_digest: SHA-256 of its ids, u32 little-endian each, in hex.
        params: with the seed in use, and ``max_tokens`` as it was resolved.
        token_ids: of the answer, a stop token included.
        checksums: rule 8's two sums of each token's logits.
        text, finish_reason, digest: as the answer had them.
    """

    model: str
    system_fingerprint: str
    fingerprint: Mapping[str, str]
    prompt_token_ids: Sequence[int]
    prompt_digest: str
    params: SamplingParams
    token_ids: Sequence[int]
    checksums: Sequence[tuple[int, int]]
    text: str
    finish_reason: str
    digest: str

    def to_value(self) -> Value:
        """Return it as JSON has it."""
        parameters = {name: getattr(self.params, name) for name in FIELDS}
        parameters["logit_bias"] = {
            str(token): bias for token, bias in dict(self.params.logit_bias).items()
        }
        parameters |= {name: list(parameters[name]) for name in ("stop", "stop_token_ids")}
        if self.params.seed is not None:  # JSON's numbers end at 2^53
            parameters["seed"] = str(self.params.seed)
        return {
            "form": FORM,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "fingerprint": dict(self.fingerprint),
            "prompt": {"token_ids": list(self.prompt_token_ids), "sha256": self.prompt_digest},
            "parameters": parameters,
            "answer": {
                "token_ids": list(self.token_ids),
                "checksums": [f"{a:016x}{b:016x}" for a, b in self.checksums],
                "text": self.text,
                "finish_reason": self.finish_reason,
                "digest": self.digest,
            },
        }


def prompt_digest(token_ids: Sequence[int]) -> str:
    """SHA-256 of token ids, u32 little-endian each, in hex."""
    return hashlib.sha256(struct.pack(f"<{len(token_ids)}I", *token_ids)).hexdigest()


def chain_digest(token_ids: Sequence[int], checksums: Sequence[tuple[int, int]]) -> str:
    """Return the digest of an answer of these tokens and checksums."""
    chain = DigestChain()
    for token, sums in zip(token_ids, checksums, strict=True):
        chain.update(token, sums)
    return chain.hexdigest()


class ReceiptMaker:
    """Gathers what a receipt says, from a request and its increments.

    Attributes:
        receipt: once the answer is finished.

    Args:
        info: of the engine.
        prompt_token_ids: the prompt.
        params: what was asked for, with ``checksums``.

    Raises:
        RequestError: the engine cannot serve it, or not deterministically.
    """

    def __init__(
        self, info: EngineInfo, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> None:
        if not params.deterministic:
            raise RequestError(
                "receipt: got it for an answer that is not deterministic, which no replay repeats",
                "receipt",
            )
        self._info, self._prompt = info, list(prompt_token_ids)
        most = check_request(prompt_token_ids, params, info)
        self._params = replace(params, max_tokens=most)
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._checksums: list[tuple[int, int]] = []
        self.receipt: Receipt | None = None

    def add(self, output: RequestOutput) -> None:
        """Take an increment; after the last one of a finished answer there is a receipt."""
        self._texts.append(output.text)
        self._token_ids += output.token_ids
        self._checksums += output.checksums or []
        if output.finish_reason not in ("stop", "length"):
            return
        self.receipt = Receipt(
            model=self._info.model_name,
            system_fingerprint=self._info.system_fingerprint,
            fingerprint=self._info.fingerprint,
            prompt_token_ids=self._prompt,
            prompt_digest=prompt_digest(self._prompt),
            params=replace(self._params, seed=output.seed),
            token_ids=self._token_ids,
            checksums=self._checksums,
            text="".join(self._texts),
            finish_reason=output.finish_reason,
            digest=output.digest or "",
        )
