"""Whether a receipt holds: what can be told without the model, and what a replay tells."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from detinfer.engine.outputs import EngineInfo, RequestOutput
from detinfer.errors import ConfigError, RequestError
from detinfer.receipts import seal
from detinfer.receipts.reading import parse
from detinfer.receipts.receipt import (
    Receipt,
    ReceiptError,
    Value,
    chain_digest,
    prompt_digest,
)
from detinfer.runner.fingerprint import Fingerprint


@dataclass(frozen=True)
class Finding:
    """What does not hold.

    Attributes:
        part: seal, signature, fingerprint, model, prompt, parameters, digest, token or answer.
        message: what was got and what was expected.
        token: the token it is about, counted from 1.
        fingerprint_parts: which of them differ.
    """

    part: str
    message: str
    token: int | None = None
    fingerprint_parts: tuple[str, ...] = ()


@dataclass
class Verdict:
    """What a verification has found.

    Attributes:
        findings: nothing if the receipt holds.
        tokens: how many were verified.
        signed_by: whose signature it has, if any.
        seconds: that the replay took.
    """

    findings: list[Finding] = field(default_factory=list)
    tokens: int = 0
    signed_by: str | None = None
    seconds: float | None = None

    @property
    def match(self) -> bool:
        """Whether the receipt holds."""
        return not self.findings

    def to_value(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"match": self.match, **asdict(self)}


def examine(value: Value, info: EngineInfo) -> tuple[Receipt, Verdict]:
    """Read a receipt and judge what needs no replay; with findings there is nothing to replay.

    Raises:
        ReceiptError: it is none.
    """
    receipt = parse(seal.opened(value))
    verdict = Verdict()
    add = verdict.findings.append
    try:
        verdict.signed_by = seal.signer(value)
    except ReceiptError as error:
        add(Finding("signature", str(error).removeprefix("signature: ")))
    if seal.SEAL not in value or not seal.is_intact(value):
        add(Finding("seal", "the receipt is not what its sha256 was made of: it was edited"))
    verdict.findings += _contradictions(receipt)
    if not verdict.findings:
        verdict.findings += _strangers(receipt, info)
    return receipt, verdict


def refused(error: RequestError) -> Finding:
    """Return what does not hold where an engine cannot even serve what a receipt says."""
    part = error.param if error.param in ("prompt", "answer") else "parameters"
    return Finding(part, str(error))


def _contradictions(receipt: Receipt) -> list[Finding]:
    """Find what a receipt says of itself twice, and not alike."""
    found = []
    try:
        name = Fingerprint(receipt.fingerprint).system_fingerprint
    except ConfigError as error:
        found.append(Finding("fingerprint", str(error).removeprefix("fingerprint: ")[:200]))
    else:
        if name.rsplit("-", 1)[1] != receipt.system_fingerprint.rsplit("-", 1)[-1]:
            found.append(
                Finding(
                    "fingerprint",
                    f"its parts make {name}, the receipt says {receipt.system_fingerprint}",
                )
            )
    if (digest := prompt_digest(receipt.prompt_token_ids)) != receipt.prompt_digest:
        found.append(
            Finding("prompt", f"its tokens make {digest}, the receipt says {receipt.prompt_digest}")
        )
    if (digest := chain_digest(receipt.token_ids, receipt.checksums)) != receipt.digest:
        found.append(
            Finding(
                "digest",
                f"tokens and checksums make {digest}, the receipt says {receipt.digest}",
            )
        )
    return found


def _strangers(receipt: Receipt, info: EngineInfo) -> list[Finding]:
    """Find what this engine is not that the receipt's was."""
    ours, theirs = info.fingerprint, receipt.fingerprint
    parts = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    if not parts:
        return []
    differing = "; ".join(
        f"{name}: got {theirs.get(name, 'none')}, here {ours.get(name, 'none')}"
        for name in sorted(parts)
    )
    kind = "model" if "weights" in parts else "fingerprint"
    return [Finding(kind, differing, fingerprint_parts=tuple(sorted(parts)))]


class Comparison:
    """A receipt beside its replay, as that comes."""

    def __init__(self, receipt: Receipt, verdict: Verdict) -> None:
        self._receipt, self._verdict = receipt, verdict
        self._text = ""

    def add(self, output: RequestOutput) -> bool:
        """Take an increment; returns whether there is more to compare."""
        receipt, verdict = self._receipt, self._verdict
        self._text += output.text
        for token, sums in zip(output.token_ids, output.checksums or [], strict=True):
            at = verdict.tokens
            if at == len(receipt.token_ids):
                self._find(f"the receipt ends after {at} tokens, the replay goes on")
                return False
            given, expected = receipt.token_ids[at], receipt.checksums[at]
            if sums != expected:
                self._at(at, f"checksum {_hex(expected)}, the replay has {_hex(sums)}")
                return False
            if token != given:
                self._at(at, f"token id {given}, the replay has {token}")
                return False
            verdict.tokens += 1
        if output.finish_reason is None:
            return True
        if output.finish_reason == "error":
            self._find(f"the replay failed: {output.error}")
        elif verdict.tokens < len(receipt.token_ids):
            more = len(receipt.token_ids)
            self._find(f"the receipt has {more} tokens, the replay ends after {verdict.tokens}")
        elif output.finish_reason != receipt.finish_reason:
            self._find(
                f"finish_reason {receipt.finish_reason}, the replay has {output.finish_reason}"
            )
        elif self._text != receipt.text:
            self._find("its text is not that of its tokens")
        return False

    def _at(self, index: int, message: str) -> None:
        self._verdict.findings.append(Finding("token", message, token=index + 1))

    def _find(self, message: str) -> None:
        self._verdict.findings.append(Finding("answer", message))


def _hex(sums: tuple[int, int]) -> str:
    return f"{sums[0]:016x}{sums[1]:016x}"
