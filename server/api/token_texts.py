"""What single tokens stand for: their bytes and their text."""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any

from detinfer.engine.detokenizer import token_decoder

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """The bytes that each token of a vocabulary adds to a text.

    Byte-level vocabularies (GPT-2's, most since) spell every byte as a character, which is undone.
    Others (SentencePiece's) are their own text, with ``▁`` for a space and ``<0x0A>`` for a byte.
    Special tokens are their names.

    Attributes:
        special: ids of the tokens that an answer's text leaves out.
        decode: the text of several tokens, special ones by name.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in str(tokenizer.backend_tokenizer.decoder)
        self._added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        self.special = frozenset(
            i for i, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        self.decode = token_decoder(tokenizer)
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token_id: int) -> bytes:
        """Return the token's bytes, none for an id that only pads the vocabulary."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._spell_out(token_id)
        return found

    def text_of(self, token_id: int) -> str:
        """Return the token's text; bytes of no whole character become replacement characters."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def encode(self, text: str, add_special_tokens: bool) -> Any:
        """Return a text's tokens with their places in it, and which of them were added to it."""
        return self._tokenizer(
            text,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )

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
    """Return the one ``TokenTexts`` of a tokenizer."""
    return TokenTexts(tokenizer)


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones are themselves, the others follow from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
