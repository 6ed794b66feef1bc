"""Where tokens begin in a text, and the prompt that comes before its answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from detinfer.engine.detokenizer import Detokenizer
from detinfer.server.api.token_texts import TokenTexts


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
