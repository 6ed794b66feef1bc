"""``detinfer generate``: one prompt, the text as it comes, and what can be compared afterwards."""

from __future__ import annotations

import dataclasses
import json
import sys

from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.llm import Completion
from detinfer.engine.validation import encode_text
from detinfer.errors import DetinferError
from detinfer.params import SamplingParams

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def generate(config: EngineConfig, prompt: str, params: SamplingParams, *, as_json: bool) -> int:
    """Complete ``prompt`` and print the answer.

    Returns:
        The exit status.

    Raises:
        DetinferError: the model cannot be loaded, or the request cannot be served.
    """
    engine = Engine(config)
    token_ids = encode_text(engine.tokenizer, prompt)
    engine.add_request("generate", token_ids, params)
    answer = Completion(token_ids, params.deterministic, engine.info.system_fingerprint)
    while answer.finish_reason is None:
        for output in engine.step():
            answer.add(output)
            if not as_json:
                print(output.text, end="", flush=True)
    if answer.finish_reason == "error":
        raise DetinferError(answer.error or "the engine gave up on this request")
    if as_json:
        print(json.dumps(dataclasses.asdict(answer), ensure_ascii=False, indent=2))
    else:
        _print_digest(answer)
    return 0


def _print_digest(answer: Completion) -> None:
    """One dim line, on stderr when stdout is not a terminal: a pipe gets the text alone."""
    print(flush=True)
    line = f"digest {answer.digest}  {answer.system_fingerprint}  {answer.finish_reason}"
    if sys.stdout.isatty():
        print(f"{_DIM}{line}{_PLAIN}")
    else:
        print(line, file=sys.stderr)
