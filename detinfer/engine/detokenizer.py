"""From token ids to text, one token at a time: whole characters only, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 4  # prompt tokens that may decide how the first output token joins on
_WINDOW = 16  # tokens after which the window moves on
_PENDING = 8  # tokens held back at most; a character is at most 4 tokens (bytes)


def token_decoder(tokenizer: Any) -> Decode:
    """The tokenizer's own decoding with special tokens skipped, without its Python layers."""
    backend = tokenizer.backend_tokenizer

    def decode(token_ids: Sequence[int]) -> str:
        text: str = backend.decode(token_ids, skip_special_tokens=True)
        return text

    return decode


class Detokenizer:
    """Incremental decoding in O(1) per token.

    A short window of tokens is decoded whole, and what goes beyond the text already given out is
    new. A tail of replacement characters may be the first bytes of a character: it is held back.
    The window always begins where a piece of text began, never inside a character.

    Args:
        decode: from token ids to text, special tokens skipped.
        context: the tokens before the first one; the last few decide how the text joins on.
    """

    __slots__ = ("_decode", "_given", "_read", "_window")

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(context[-_CONTEXT:])
        self._read = len(self._window)  # tokens of the window whose text was given out
        # A prompt may end inside a character, which the first output tokens then complete.
        self._given = len(decode(self._window).rstrip(_REPLACEMENT)) if self._window else 0

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is now certain."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):
            if len(self._window) - self._read <= _PENDING:
                return ""
            # No character in all these tokens: bytes that are no UTF-8. Only the last three can
            # still be the beginning of one.
            text = self._decode(self._window[:-3])
            return self._move_to(len(self._window) - 3, text, read=0)
        if len(text) <= self._given:
            self._window.pop()  # a special token, or an empty one
            return ""
        if len(self._window) < _WINDOW:
            new, self._given = text[self._given :], len(text)
            self._read = len(self._window)
            return new
        return self._move_to(self._read, text, read=len(self._window) - self._read)

    def finish(self) -> str:
        """What was held back, once no token can complete it."""
        text = self._decode(self._window)
        new, self._given = text[self._given :], len(text)
        return new

    def _move_to(self, start: int, text: str, read: int) -> str:
        new = text[self._given :]
        self._window = self._window[start:]
        self._read = read
        self._given = len(self._decode(self._window[:read])) if read else 0
        return new


class StopStrings:
    """Finds the first stop string in a stream of text (Knuth, Morris and Pratt, one each).

    Text that could be the beginning of a stop string is held back, so that nothing of a stop
    string is ever given out.
    """

    __slots__ = ("_failures", "_held", "_matched", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._failures = [_failure_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # of each stop string, characters matched so far
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Adds text; returns what is certain, and whether a stop string ended it."""
        if not self._stops:
            return text, False
        buffer = self._held + text
        for index in range(len(self._held), len(buffer)):
            complete = self._advance(buffer[index])
            if complete:
                self._held = ""
                return buffer[: index + 1 - complete], True
        keep = len(buffer) - max(self._matched)
        self._held = buffer[keep:]
        return buffer[:keep], False

    def finish(self) -> str:
        """What was held back, once nothing can follow."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Steps every automaton; returns the length of the longest stop string now complete."""
        complete = 0
        for i, (stop, failure) in enumerate(zip(self._stops, self._failures, strict=True)):
            matched = self._matched[i]
            while matched and stop[matched] != character:
                matched = failure[matched - 1]
            matched += stop[matched] == character
            self._matched[i] = matched
            if matched == len(stop):
                complete = max(complete, matched)
        return complete


def _failure_table(pattern: str) -> list[int]:
    table = [0] * len(pattern)
    matched = 0
    for index in range(1, len(pattern)):
        while matched and pattern[index] != pattern[matched]:
            matched = table[matched - 1]
        matched += pattern[index] == pattern[matched]
        table[index] = matched
    return table
