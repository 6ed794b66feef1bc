"""Texts become tokens: beside the event loop, and never more than the model can hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, TypeVar

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.validation import encode_text, too_long
from detinfer.errors import RequestError

# Shorter texts take less time to tokenise than a thread takes to start on them.
INLINE_SIZE = 2000
# Longer ones wait for one another, so that the others need not wait for them.
LARGE_SIZE = 200_000
_large = ThreadPoolExecutor(1, thread_name_prefix="large-text")

T = TypeVar("T")


async def aside(size: int, work: Callable[..., T], *args: Any, **options: Any) -> T:
    """Work of the tokenizer on ``size`` characters or tokens; much of it in a thread.

    It lets go of the interpreter lock meanwhile.
    """
    if size <= INLINE_SIZE:
        return work(*args, **options)
    if size <= LARGE_SIZE:
        return await asyncio.to_thread(work, *args, **options)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_large, partial(work, *args, **options))


async def tokenize(
    engine: AsyncEngine, texts: Sequence[str], field: str, add_special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of raw texts, with the special tokens that the tokenizer adds by default.

    Raises:
        RequestError: a text without a token, or one that no tokens of the model's length spell.
    """
    for text in texts:
        check_length(engine, len(text), field)
    encode = partial(
        encode_text, engine.tokenizer, field=field, add_special_tokens=add_special_tokens
    )
    encoded = await aside(sum(map(len, texts)), lambda: [encode(text) for text in texts])
    if not all(encoded):
        raise RequestError(f"{field}: got text without a single token", field)
    return encoded


def check_length(engine: AsyncEngine, characters: int, field: str) -> None:
    """Refuse text that no tokens of the model's length spell, before it is worked on.

    Raises:
        RequestError: naming the field.
    """
    longest = engine.info.max_model_len * longest_token(engine.tokenizer)
    if characters > longest:
        raise too_long(
            engine.info.max_model_len,
            field,
            f"got {characters} characters, at most {longest} can fit",
        )


@lru_cache(maxsize=4)
def longest_token(tokenizer: Any) -> int:
    """Characters of the vocabulary's longest token."""
    return max(map(len, tokenizer.get_vocab()))
