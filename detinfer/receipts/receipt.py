"""What a receipt says, and how it is written: one JSON object, each part under its own name."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detinfer.digest import DigestChain
from detinfer.engine.outputs import Completion, EngineInfo
from detinfer.errors import DetinferError, RequestError
from detinfer.params import MAX_CONSTRAINT, SamplingParams

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
        parameters = {
            name: value
            for name, value in parameters.items()
            if name not in MAX_CONSTRAINT or value is not None
        }
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


def receipt_params(params: SamplingParams, max_tokens: int) -> SamplingParams:
    """Return the parameters of an answer that is to have a receipt.

    Args:
        params: what was asked for.
        max_tokens: most tokens to generate, as ``check_request`` resolves it.

    Raises:
        RequestError: the answer would not be deterministic.
    """
    if not params.deterministic:
        raise RequestError(
            "receipt: got it for an answer that is not deterministic, which no replay repeats",
            "receipt",
        )
    return replace(params, max_tokens=max_tokens, checksums=True)


def receipt_of(info: EngineInfo, answer: Completion, params: SamplingParams) -> Receipt:
    """Return the receipt of an answer.

    Args:
        info: of the engine that gave it.
        answer: finished.
        params: it was made with, of ``receipt_params``.
    """
    return Receipt(
        model=info.model_name,
        system_fingerprint=info.system_fingerprint,
        fingerprint=info.fingerprint,
        prompt_token_ids=answer.prompt_token_ids,
        prompt_digest=prompt_digest(answer.prompt_token_ids),
        params=replace(params, seed=answer.seed),
        token_ids=answer.token_ids,
        checksums=answer.checksums or [],
        text=answer.text,
        finish_reason=answer.finish_reason or "",
        digest=answer.digest,
    )
