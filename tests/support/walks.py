"""Answers by a grammar without a model: any token that the mask lets through may come next."""

from __future__ import annotations

import random

import numpy as np
from constrained import END, AsciiRunner
from fake_engine import byte_tokenizer

from detinfer.config import EngineConfig
from detinfer.engine.constraint import Constraint
from detinfer.engine.grammars import GrammarCompiler
from detinfer.engine.outputs import describe
from detinfer.params import SamplingParams
from detinfer.token_mask import TokenMask, allows

BYTES = 256
# What ends strings, lists, objects and answers, once an answer is long.
_ENDINGS = [END, *map(ord, '"}]')]


class ByteRunner(AsciiRunner):
    """A vocabulary of all bytes."""

    vocab_size = BYTES

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = byte_tokenizer(size=BYTES)


def compiler() -> GrammarCompiler:
    """A compiler for a vocabulary of all bytes."""
    runner = ByteRunner()
    return GrammarCompiler(runner.tokenizer, describe(runner, EngineConfig().resolve()))


def compiled(by: GrammarCompiler, params: SamplingParams) -> Constraint:
    """Wait for a grammar.

    Raises:
        RequestError: it is refused.
    """
    future = by.start(params)
    assert future is not None
    return future.result()


def what_may_come(constraint: Constraint) -> TokenMask:
    """Have the next mask made, whatever is likely."""
    [mask] = constraint.masks([], [None])
    assert mask is not None
    return mask


def walk(constraint: Constraint, rng: random.Random, most: int = 300) -> tuple[str, bytes]:
    """Draw tokens until nothing can follow, the end is drawn, or there are so many.

    Returns:
        How it ended, as an engine would say, and the text.
    """
    text = bytearray()
    while len(text) < most:
        mask = what_may_come(constraint)
        if constraint.failure is not None:
            return "error", bytes(text)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:BYTES]).tolist()
        assert allowed, "no token may come, and no end"
        endings = [token for token in _ENDINGS if token in allowed]
        hurried = endings and rng.random() < len(text) / 60
        token = rng.choice(endings if hurried else allowed)
        if token == END:
            return "stop", bytes(text)
        text.append(token)
        constraint.take(token)
        if constraint.failure is not None:
            return "error", bytes(text)
        if constraint.ended:
            return "stop", bytes(text)
    return "length", bytes(text)


def accepts(constraint: Constraint, text: bytes) -> bool:
    """Whether a text is a whole answer."""
    for token in text:
        if not allows(what_may_come(constraint), token):
            return False
        constraint.take(token)
    return constraint.ended or allows(what_may_come(constraint), END)
