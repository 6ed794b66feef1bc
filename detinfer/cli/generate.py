"""``detinfer generate``: one prompt, the text as it comes, and what can be compared afterwards."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from detinfer.chat_template import render_chat
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.outputs import Completion
from detinfer.engine.validation import check_request, encode_text
from detinfer.errors import DetinferError
from detinfer.output_file import OutputFile
from detinfer.params import SamplingParams
from detinfer.receipts.receipt import receipt_of, receipt_params
from detinfer.receipts.seal import load_key, seal

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def generate(
    config: EngineConfig,
    prompt: str,
    params: SamplingParams,
    *,
    as_json: bool,
    chat: bool | None,
    receipt: str | None = None,
    receipt_key: str | None = None,
) -> int:
    """Answer ``prompt`` and print the answer.

    Args:
        config: the engine's settings.
        prompt: a text to continue, or with ``chat`` a message to answer.
        params: how to answer.
        as_json: print all that is known of the answer.
        chat: whether to use the model's chat template; None: if it has one and a person asks.
        receipt: where to write the answer's receipt, if anywhere.
        receipt_key: a file with the key that signs it, if any.

    Returns:
        The exit status.

    Raises:
        DetinferError: the model cannot be loaded, or the request cannot be served.
    """
    file = OutputFile("--receipt", receipt) if receipt is not None else None
    key = load_key(Path(receipt_key)) if receipt_key is not None else None
    engine = Engine(config)
    has_template = bool(engine.tokenizer.chat_template)
    if chat is None:
        chat = has_template and sys.stdin.isatty() and sys.stdout.isatty()
    if chat:
        token_ids = render_chat(engine.tokenizer, [{"role": "user", "content": prompt}])
    else:
        token_ids = encode_text(engine.tokenizer, prompt)
    if file is not None:
        params = receipt_params(params, check_request(token_ids, params, engine.info))
    answer = run_request(engine, token_ids, params, (lambda text: None) if as_json else show)
    if file is not None:
        sealed = seal(receipt_of(engine.info, answer, params).to_value(), key)
        file.write(json.dumps(sealed, ensure_ascii=False) + "\n")
    if as_json:
        print(json.dumps(dataclasses.asdict(answer), ensure_ascii=False, indent=2))
    else:
        print_digest(answer)
    if has_template and not chat and not answer.text:
        print("the answer is empty: this model is made for chat, try --chat", file=sys.stderr)
    return 0


def run_request(
    engine: Engine,
    token_ids: list[int],
    params: SamplingParams,
    show: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> Completion:
    """Run one request to its end, showing its text as it comes; ``stopped`` ends it early.

    Raises:
        DetinferError: the request cannot be served, or ended with an error.
    """
    engine.add_request("cli", token_ids, params)
    answer = Completion(token_ids, params.deterministic, engine.info.system_fingerprint)
    while answer.finish_reason is None:
        outputs = engine.step()
        if stopped() and (last := engine.abort("cli")) is not None:
            outputs.append(last)
        for output in outputs:
            answer.add(output)
            show(output.text)
    if answer.finish_reason == "error":
        raise DetinferError(answer.error or "the engine gave up on this request")
    return answer


def show(text: str) -> None:
    """Print a piece of an answer at once."""
    print(text, end="", flush=True)


def print_digest(answer: Completion) -> None:
    """One dim line, on stderr when stdout is not a terminal: a pipe gets the text alone."""
    print(flush=True)
    line = f"digest {answer.digest}  {answer.system_fingerprint}  {answer.finish_reason}"
    if sys.stdout.isatty():
        print(f"{_DIM}{line}{_PLAIN}")
    else:
        print(line, file=sys.stderr)
