"""Which part of an answer's text belongs to which of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from detinfer.engine.detokenizer import (
    Decode,
    Detokenizer,
    StopStrings,
    special_tokens,
    token_decoder,
)
from detinfer.params import SamplingParams


class TextPieces:
    """A text that comes in increments, cut into one piece a token.

    The pieces join to the text. Each depends on the tokens up to its own only: how many of them an
    increment has, which depends on the load where tokens are guessed ahead, moves no cut.

    Args:
        tokenizer: the engine's.
        prompt_token_ids: what the text joins on to.
        params: of the answer.
    """

    def __init__(
        self, tokenizer: Any, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> None:
        decode, special = _parts(tokenizer)
        self._left_out = special if params.skip_special_tokens else {}
        self._detokenizer = Detokenizer(decode, prompt_token_ids, self._left_out)
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens
        self._count = 0

    def add(self, token_ids: Sequence[int], text: str, ended: bool) -> Iterator[str]:
        """Yield the pieces of an increment; the answer's last token has all that is left."""
        for index, token_id in enumerate(token_ids):
            length = len(text)
            if not (ended and index == len(token_ids) - 1):
                length = self._certain(token_id)
            yield text[:length]
            text = text[length:]

    def _certain(self, token_id: int) -> int:
        """Return how many more characters the engine is sure of after this token."""
        self._count += 1
        text = self._detokenizer.push(token_id)
        if self._count > self._min_tokens:
            text, _ = self._stops.push(text, self._left_out.get(token_id, ""))
        return len(text)


@lru_cache(maxsize=4)
def _parts(tokenizer: Any) -> tuple[Decode, dict[int, str]]:
    return token_decoder(tokenizer), special_tokens(tokenizer)
