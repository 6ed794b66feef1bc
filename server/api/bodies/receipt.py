"""A receipt as the description has it; ``detinfer.receipts.reading`` is what reads one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from detinfer.receipts.receipt import FORM
from detinfer.server.api.bodies.fields import (
    LogitBias,
    MinP,
    MinTokens,
    Penalty,
    Prompt,
    RepetitionPenalty,
    StopStrings,
    Temperature,
    TokenIds,
    Tokens,
    TopP,
    documented,
    stated,
)
from detinfer.server.api.bodies.strict import StrictBody

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Checksum = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class ReceiptPrompt(StrictBody):
    """What was answered, and the SHA-256 of its ids, u32 little-endian each."""

    token_ids: Prompt
    sha256: Digest


class ReceiptParameters(StrictBody):
    """How it was answered, every default resolved; the seed as a string."""

    max_tokens: Tokens
    temperature: Temperature
    top_p: TopP
    top_k: Annotated[int, documented(0, 1 << 31)]
    min_p: MinP
    repetition_penalty: RepetitionPenalty
    presence_penalty: Penalty
    frequency_penalty: Penalty
    logit_bias: LogitBias
    seed: Annotated[str, Field(pattern="^[0-9]{1,20}$")] | None
    stop: StopStrings
    stop_token_ids: TokenIds
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    ignore_eos: bool
    min_tokens: MinTokens


class ReceiptAnswer(StrictBody):
    """What was answered: a checksum of its logits for each token, and the digest of them all."""

    token_ids: Prompt
    checksums: Annotated[list[Checksum], stated(minItems=1)]
    text: str
    finish_reason: Literal["stop", "length"]
    digest: Digest


class ReceiptSignature(StrictBody):
    """Who signed the canonical JSON of all but this and the seal; both in base64."""

    algorithm: Literal["ed25519"]
    public_key: str
    value: str


class Receipt(StrictBody):
    """All that decided an answer, sealed: ``sha256`` is of its canonical JSON (RFC 8785)."""

    form: Annotated[str, Field(json_schema_extra={"const": FORM})]
    model: str
    system_fingerprint: str
    fingerprint: dict[str, Annotated[str, stated(maxLength=200)]]
    prompt: ReceiptPrompt
    parameters: ReceiptParameters
    answer: ReceiptAnswer
    sha256: Digest
    signature: ReceiptSignature | None = None
