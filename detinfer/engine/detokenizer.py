"""From token ids to text, one token at a time: whole characters only, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Any

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_WINDOW = 16  # tokens after which the window moves on
_PENDING = 8  # tokens held back at most; a character is at most 4 tokens (bytes)
_CHARACTER = 4  # tokens (bytes) of a character at most
# Tokens that may decide how the next one joins on: a few are enough. If they begin inside a
# character, three more do not; the last sizes are for prompts that end in tokens without text.
_CONTEXT = (4, 5, 6, 7, 64, 512)


def token_decoder(tokenizer: Any) -> Decode:
    """Return the tokenizer's own decoding, special tokens by name, without its Python layers."""
    backend = tokenizer.backend_tokenizer

    def decode(token_ids: Sequence[int]) -> str:
        try:
            text: str = backend.decode(token_ids, skip_special_tokens=False)
        except BaseException as error:
            raise_panic(error)
            raise
        return text

    return decode


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the names of the tokens that a text leaves out, by id."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {index: token.content for index, token in added.items() if token.special}


def raise_panic(error: BaseException) -> None:
    """Make a panic of a tokenizer's Rust, which is no ``Exception``, one that ends one request.

    Raises:
        RuntimeError: if it is one.
    """
    if type(error).__name__ == "PanicException":  # each extension module has a class of its own
        raise RuntimeError(f"the tokenizer panicked: {error}") from error


class Detokenizer:
    """Incremental decoding in O(1) per token.

    The pieces join to the text of prompt and answer without the text of the prompt, wherever the
    one begins with the other. A short window of tokens is decoded whole, and what goes beyond the
    text already given out is new. A tail of replacement characters may be the first bytes of a
    character: it is held back.

    Args:
        decode: from token ids to text.
        context: the tokens before the first one; the last few decide how the text joins on.
        skipped: ids that text leaves out. A context of nothing else is joined on to by their names.
    """

    __slots__ = ("_decode", "_given", "_read", "_skipped", "_window")

    def __init__(
        self, decode: Decode, context: Sequence[int] = (), skipped: Collection[int] = ()
    ) -> None:
        self._decode = decode
        self._skipped = skipped
        self._window: list[int] = []
        self._read = 0  # tokens of the window whose text was given out
        self._given: tuple[str, ...] = ("",)  # what that text may be, likeliest first
        tokens = (token for token in reversed(context) if token not in skipped)
        last = list(islice(tokens, _CONTEXT[-1]))[::-1] or list(context[-_CONTEXT[0] :])
        self._start(last)

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now certain."""
        if token_id in self._skipped:
            return ""
        window = self._window
        window.append(token_id)
        text = self._decode(window)
        if text.endswith(_REPLACEMENT):
            if len(window) - self._read <= _PENDING:
                return ""
            return self._give_up(text)
        new = self._news(text, len(window))
        if new:
            self._read, self._given = len(window), (text,)
            if len(window) >= _WINDOW:
                self._start(window)
        elif len(window) - self._read > _PENDING:
            window.pop()  # one of very many tokens without text
        return new

    def finish(self) -> str:
        """Return what was held back, once no token can complete it."""
        text = self._decode(self._window)
        new = self._news(text, len(self._window))
        self._read, self._given = len(self._window), (text,)
        return new

    def _start(self, tokens: Sequence[int]) -> None:
        """Begins a window with the last few of ``tokens``, whose text was given out."""
        for size in _CONTEXT:
            self._window = list(tokens[-size:])
            self._read, text = self._whole_characters()
            if text and not text.startswith(_REPLACEMENT):
                break
            if size >= len(tokens):
                self._window = list(tokens[-_CONTEXT[0] :])  # bytes that are no text, or no bytes
                self._read, text = self._whole_characters()
                break
        # A prompt may end inside a character, which the first output tokens then complete or not.
        self._given = (self._decode(self._window), text)

    def _whole_characters(self) -> tuple[int, str]:
        """Return how many of the window's tokens end with a whole character, and their text."""
        count = len(self._window)
        for size in range(count, max(count - _CHARACTER, -1), -1):
            text = self._decode(self._window[:size])
            if not text.endswith(_REPLACEMENT):
                return size, text
        return count, self._decode(self._window)

    def _give_up(self, text: str) -> str:
        """Give out a window of bytes that are no UTF-8, but for what may begin a character."""
        window = self._window
        for cut in range(len(window) - _CHARACTER + 1, len(window) + 1):
            first, rest = self._decode(window[:cut]), window[cut:]
            if first + self._decode(rest) == text:
                break
        new = self._news(first, cut)
        self._window, self._read, self._given = rest, 0, ("",)
        return new

    def _news(self, text: str, stop: int) -> str:
        """Return what the window's tokens before ``stop`` add to the text that was given out."""
        for given in self._given:
            if text.startswith(given):
                return text[len(given) :]
        # Bytes after the given ones made their whole run invalid, as some decoders have it.
        return self._decode(self._window[self._read : stop])


class StopStrings:
    """Finds the first stop string in a stream of text (Knuth, Morris and Pratt, one each).

    Text that could be the beginning of a stop string is held back, so that nothing of a stop
    string is ever given out. The names of special tokens can be (part of) a stop string though the
    text leaves them out.

    Args:
        stops: the stop strings.
        included: whether the text ends with the one found; then nothing is held back.

    Attributes:
        found: the one that ended the text, the longest if several end there; else None.
    """

    __slots__ = ("_failures", "_held", "_included", "_matched", "_stops", "found")

    def __init__(self, stops: Sequence[str], included: bool = False) -> None:
        self.found: str | None = None
        self._included = included
        self._stops = tuple(stops)
        self._failures = [_failure_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # of each stop string, characters matched so far
        self._held: list[tuple[str, bool]] = []  # a character, and whether it is in the text

    def push(self, text: str, left_out: str = "") -> tuple[str, bool]:
        """Add text, and after it what the text leaves out.

        Returns:
            What is certain of the text, and whether a stop string ended it.
        """
        if not self._stops:
            return text, False
        start, buffer = len(self._held), self._held
        buffer += [(character, True) for character in text]
        buffer += [(character, False) for character in left_out]
        for index in range(start, len(buffer)):
            self.found = self._advance(buffer[index][0])
            if self.found is not None:
                self._held = []
                cut = 0 if self._included else len(self.found)
                return _shown(buffer[: index + 1 - cut]), True
        keep = len(buffer) - (0 if self._included else max(self._matched))
        self._held = buffer[keep:]
        return _shown(buffer[:keep]), False

    def finish(self) -> str:
        """Return what was held back, once nothing can follow."""
        held, self._held = self._held, []
        return _shown(held)

    def _advance(self, character: str) -> str | None:
        """Step every automaton and return the longest stop string now complete."""
        complete: str | None = None
        for i, (stop, failure) in enumerate(zip(self._stops, self._failures, strict=True)):
            matched = self._matched[i]
            while matched and stop[matched] != character:
                matched = failure[matched - 1]
            matched += stop[matched] == character
            self._matched[i] = matched
            if matched == len(stop) and (complete is None or matched > len(complete)):
                complete = stop
        return complete


def _shown(characters: Sequence[tuple[str, bool]]) -> str:
    return "".join(character for character, shown in characters if shown)


def _failure_table(pattern: str) -> list[int]:
    table = [0] * len(pattern)
    matched = 0
    for index in range(1, len(pattern)):
        while matched and pattern[index] != pattern[matched]:
            matched = table[matched - 1]
        matched += pattern[index] == pattern[matched]
        table[index] = matched
    return table
