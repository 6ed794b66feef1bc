"""``detinfer chat``: a conversation in a terminal, each answer with its digest."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

from detinfer.chat_template import Message, render_chat
from detinfer.cli.generate import print_digest, run_request, show
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine
from detinfer.engine.outputs import Completion
from detinfer.errors import ConfigError, DetinferError, RequestError
from detinfer.params import SamplingParams

_HELP = "/new forgets what was said, /quit or Ctrl-D ends, Ctrl-C stops an answer"


def chat(config: EngineConfig, params: SamplingParams, system: str | None) -> int:
    """Talk until the end of the input.

    Args:
        config: the engine's settings.
        params: how to answer; ``max_tokens`` is cut down to what fits.
        system: a first message of the role ``system``.

    Returns:
        The exit status.

    Raises:
        DetinferError: the model cannot be loaded, or is not one to chat with.
    """
    engine = Engine(config)
    if not engine.tokenizer.chat_template:
        raise ConfigError(
            f"model {engine.info.model_name}: has no chat template, use detinfer generate"
        )
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    _say(f"{engine.info.model_name}, {engine.info.system_fingerprint}: {_HELP}")
    messages = list(first)
    for line in _lines():
        if line == "/quit":
            break
        if line == "/new":
            messages = list(first)
        elif line.startswith("/"):
            _say(f"{line}: no such command: {_HELP}")
        elif line:
            asked: list[Message] = [*messages, {"role": "user", "content": line}]
            try:
                answer = _answer(engine, asked, params)
            except DetinferError as error:
                _say(f"error: {error}; /new forgets what was said")
                continue
            messages = [*asked, {"role": "assistant", "content": answer.text}]
            print_digest(answer)
            if answer.finish_reason == "length":
                count = len(answer.token_ids)
                limit = "--max-tokens" if count == params.max_tokens else "the model's length"
                _say(f"cut off after {count} tokens by {limit}")
    return 0


def _answer(engine: Engine, messages: list[Message], params: SamplingParams) -> Completion:
    token_ids = render_chat(engine.tokenizer, messages)
    room = engine.info.longest - len(token_ids)
    if room < 1:
        raise RequestError(
            f"the conversation has {len(token_ids)} tokens, which leaves no room for an answer in "
            f"the model's length of {engine.info.longest}"
        )
    if params.max_tokens is not None:
        params = replace(params, max_tokens=min(params.max_tokens, room))
    with _interrupts() as stopped:
        return run_request(engine, token_ids, params, show, stopped)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Return whether Ctrl-C was pressed: a step is never cut short, the engine stays whole."""
    pressed = False

    def press(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """Yield what is typed, or piped in, line by line."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() gets editing and history)
    while True:
        try:
            yield input("> " if typed else "").strip()
        except EOFError:
            if typed:
                print()
            return
        except KeyboardInterrupt:
            print()
            _say(_HELP)


def _say(line: str) -> None:
    print(f"detinfer: {line}", file=sys.stderr, flush=True)
