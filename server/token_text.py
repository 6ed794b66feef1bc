"""What single tokens stand for: their bytes, their text, and where they begin in a text."""

from __future__ import annotations

import codecs
import contextlib
import functools
import re
from collections.abc import Iterable
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """The bytes that each token of a vocabulary adds to a text.

    Byte-level vocabularies (GPT-2's, most since) spell every byte as a character, which is undone.
    Others (SentencePiece's) are their own text, with ``▁`` for a space and ``<0x0A>`` for a byte.
    Special tokens are their names.

    Attributes:
        special: ids of the tokens that an answer's text leaves out.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
        self._added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        self.special = frozenset(
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """The token's bytes, none for an id that only pads the vocabulary."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._spell_out(token_id)
        return found

    def text_of(self, token_id: int) -> str:
        """The token's text; bytes that are no whole characters become replacement characters."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def text(self, token_ids: Iterable[int]) -> str:
        """The text of several tokens, special ones by name."""
        return b"".join(map(self.bytes_of, token_ids)).decode("utf-8", "replace")

    def _spell_out(self, token_id: int) -> bytes:
        if token_id in self._added:
            return str(self._added[token_id]).encode()
        token: str = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        if self._byte_level:
            with contextlib.suppress(KeyError):  # not spelled in bytes, so its own text
                return bytes(map(_byte_alphabet().__getitem__, token))
            return token.encode()
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace("▁", " ").encode()


@functools.lru_cache(maxsize=4)
def token_texts(tokenizer: Any) -> TokenTexts:
    """The one ``TokenTexts`` of a tokenizer."""
    return TokenTexts(tokenizer)


class Offsets:
    """Where tokens begin in a text, in characters.

    A token that is not in the text as it stands takes no room: a special token of the answer, a
    BOS that the tokenizer added, the space that SentencePiece puts in front.
    """

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def next(self, token_id: int, text: str | None = None) -> int:
        """Where the token begins; ``text`` is the whole text if it is known."""
        start = self._at
        piece = self._decoder.decode(self._texts.bytes_of(token_id))
        if text is None:
            piece = "" if token_id in self._texts.special else piece
        elif not text.startswith(piece, start):
            if token_id in self._texts.special:
                piece = ""
            elif start == 0:
                piece = piece.removeprefix(" ")
        self._at += len(piece)
        return start


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones are themselves, the others follow from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
