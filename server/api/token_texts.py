"""What single tokens stand for: their bytes, their text, and where they begin in a text."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from detinfer.engine.detokenizer import Detokenizer, token_decoder

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


@dataclass(frozen=True)
class Echo:
    """A prompt as it comes before its answer.

    Attributes:
        text: what the client sent, or what its token ids decode to.
        offsets: where each token begins in the text, in characters; None if nobody asks.
    """

    text: str
    offsets: list[int] | None


def echo_of(
    texts: TokenTexts, prompt: str | list[int], with_offsets: bool, add_special_tokens: bool = True
) -> Echo:
    """Return the echo of a prompt that was sent as a text, or as ids."""
    if isinstance(prompt, str):
        found = _offsets_in(texts, prompt, add_special_tokens) if with_offsets else None
        return Echo(prompt, found)
    text = texts.decode(prompt)
    return Echo(text, _offsets_of(texts, prompt)[0] if with_offsets else None)


def _offsets_of(texts: TokenTexts, token_ids: Iterable[int]) -> tuple[list[int], str]:
    """Return where tokens begin in the text that they decode to, and that text."""
    detokenizer = Detokenizer(texts.decode)
    starts, text = [], ""
    for token_id in token_ids:
        starts.append(len(text))
        text += detokenizer.push(token_id)
    return starts, text + detokenizer.finish()


def _offsets_in(texts: TokenTexts, text: str, add_special_tokens: bool) -> list[int]:
    """Return where a text's tokens begin in it; those that were added take no room."""
    encoding = texts.encode(text, add_special_tokens)
    ids, added = encoding["input_ids"], encoding["special_tokens_mask"]
    own, spelled = _offsets_of(texts, [t for t, a in zip(ids, added, strict=True) if not a])
    lost = len(text) - len(spelled)  # a space in front, which some decoders drop
    if text.endswith(spelled) and not text[:lost].strip(" "):
        own = [start + lost if i else 0 for i, start in enumerate(own)]
        ends = iter([*own[1:], len(text)])
    else:  # another spelling: what the tokenizer itself keeps of it, which may be coarse
        spans = [s for s, a in zip(encoding["offset_mapping"], added, strict=True) if not a]
        own = list(itertools.accumulate((start for start, _ in spans), max))
        ends = iter([end for _, end in spans])
    starts, end, place = [], 0, iter(own)
    for template in added:
        starts.append(end if template else next(place))
        end = end if template else next(ends)
    return starts


class Offsets:
    """Where tokens begin in the text that a detokenizer makes of them, in characters.

    A token that only begins a character begins where the character does, one that the text leaves
    out where the next one does, and one of a stop string beyond the text that goes out.
    """

    def __init__(self, detokenizer: Detokenizer, at: int = 0) -> None:
        self._detokenizer = detokenizer
        self._at = at

    def next(self, token_id: int) -> int:
        """Return where the token begins."""
        start = self._at
        self._at += len(self._detokenizer.push(token_id))
        return start


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones are themselves, the others follow from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }
