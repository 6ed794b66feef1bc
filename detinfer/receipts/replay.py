"""A receipt replayed by an engine in this process."""

from __future__ import annotations

import time

from detinfer.engine.engine import Engine
from detinfer.errors import RequestError
from detinfer.receipts.receipt import Value
from detinfer.receipts.verdict import Comparison, Verdict, examine, refused

_ID = "receipt"


def verify(value: Value, engine: Engine) -> Verdict:
    """Verify a receipt; its answer is fed as it stands, many tokens a step.

    Args:
        value: its JSON.
        engine: of the model it names, with nothing else to do.

    Raises:
        ReceiptError: it is none.
    """
    receipt, verdict = examine(value, engine.info)
    if not verdict.match:
        return verdict
    began = time.perf_counter()
    prompt, answer = receipt.prompt_token_ids, receipt.token_ids
    try:
        engine.add_request(_ID, prompt, receipt.params, answer=answer)
    except RequestError as error:
        verdict.findings.append(refused(error))
        return verdict
    comparison, going = Comparison(receipt, verdict), True
    try:
        while going:
            for output in engine.step():
                going = going and comparison.add(output)
    finally:
        engine.discard([_ID])
    verdict.seconds = time.perf_counter() - began
    return verdict
