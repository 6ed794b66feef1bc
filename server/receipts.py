"""Receipts of a call's answers: made of the increments, sealed beside the event loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detinfer.engine.outputs import Completion, EngineInfo, RequestOutput
from detinfer.receipts.receipt import Value, receipt_of
from detinfer.receipts.seal import seal
from detinfer.server.generation import Job
from detinfer.server.tokenizing import aside

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Receipts:
    """What the answers of one call were made of, as their increments come.

    Args:
        info: of the engine.
        jobs: one an answer, with parameters of ``receipt_params``.
        key: what signs the receipts, if anything.
    """

    def __init__(
        self, info: EngineInfo, jobs: Sequence[Job], key: Ed25519PrivateKey | None
    ) -> None:
        self._info, self._jobs, self._key = info, jobs, key
        self._answers = [
            Completion(job.prompt_token_ids, job.params.deterministic, info.system_fingerprint)
            for job in jobs
        ]

    async def add(self, index: int, output: RequestOutput) -> Value:
        """Take an increment; returns what its answer says of its receipt: nothing until it ends."""
        answer = self._answers[index]
        answer.add(output)
        if output.finish_reason is None:
            return {}
        tokens = len(answer.prompt_token_ids) + len(answer.token_ids)
        return await aside(tokens, self._sealed, index)

    def _sealed(self, index: int) -> Value:
        receipt = receipt_of(self._info, self._answers[index], self._jobs[index].params)
        return {"receipt": seal(receipt.to_value(), self._key)}
