"""Whether a request can be served at all; asked on both sides of the process boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from detinfer.config import pages_for
from detinfer.engine.outputs import EngineInfo
from detinfer.errors import RequestError
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.params import PoolingParams, SamplingParams, constraint_of


def encode_text(
    tokenizer: Any, text: str, field: str = "prompt", add_special_tokens: bool = True
) -> list[int]:
    """Token ids of a raw text, with the special tokens that the tokenizer adds by default.

    Raises:
        RequestError: the text has characters that UTF-8 cannot carry (bytes that were not UTF-8).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{field}: got text that is not valid UTF-8 at character {error.start}", field
        ) from None
    return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))


def too_long(longest: int, field: str, complaint: str) -> RequestError:
    """Say what does not fit ``longest`` tokens, in the sentence clients of OpenAI look for."""
    return RequestError(
        f"This model's maximum context length is {longest} tokens. However, {field}: {complaint}",
        field,
        "context_length_exceeded",
    )


def stop_ids(params: SamplingParams, info: EngineInfo) -> frozenset[int]:
    """Token ids of the vocabulary that end the request's output."""
    # Nothing can follow where a grammar lets its end be chosen.
    ends = () if params.ignore_eos and constraint_of(params) is None else info.eos_token_ids
    ids = [*params.stop_token_ids, *ends]
    # A model's own may be anything: an id that no token has ends nothing and masks nothing.
    return frozenset(
        token for token in ids if isinstance(token, int) and 0 <= token < info.vocab_size
    )


def check_request(prompt_token_ids: Sequence[int], params: SamplingParams, info: EngineInfo) -> int:
    """Check a request against the model and the pool.

    Returns:
        The most tokens to generate, with ``max_tokens=None`` resolved.

    Raises:
        RequestError: naming the field, what was got and what was expected.
    """
    if params.n != 1:
        raise RequestError(f"n: got {params.n}, the engine takes one choice at a time", "n")
    check_ids("prompt", prompt_token_ids, info)
    prompt = len(prompt_token_ids)
    room = info.max_model_len - prompt
    if room < 1:
        raise too_long(
            info.max_model_len,
            "prompt",
            f"got {prompt} tokens, at most {info.max_model_len - 1} leave room for an answer",
        )
    max_tokens = max(1, info.longest - prompt) if params.max_tokens is None else params.max_tokens
    if max(max_tokens, params.min_tokens) > room:
        name = "max_tokens" if max_tokens > room else "min_tokens"
        raise too_long(
            info.max_model_len,
            name,
            f"got {getattr(params, name)} after a prompt of {prompt} tokens, at most {room} fit",
        )
    pages = pages_for(prompt + max_tokens)
    if pages > info.num_pages:
        raise too_long(
            info.num_pages * PAGE_SIZE,
            "max_tokens",
            f"a prompt of {prompt} tokens and {max_tokens} to generate need {pages} pages of "
            f"{PAGE_SIZE} tokens, the KV cache has {info.num_pages}",
        )
    if params.min_tokens and len(stop_ids(params, info)) >= info.vocab_size:
        raise RequestError("min_tokens: every token of the vocabulary is a stop id", "min_tokens")
    if params.logit_bias and (token := max(dict(params.logit_bias))) >= info.vocab_size:
        raise RequestError(
            f"logit_bias: got token id {token}, expected 0..{info.vocab_size - 1}", "logit_bias"
        )
    _check_mode(params.deterministic, info)
    return max_tokens


def check_pooling(prompt_token_ids: Sequence[int], params: PoolingParams, info: EngineInfo) -> None:
    """Check a request for an embedding against the model and the pool.

    Raises:
        RequestError: naming the field, what was got and what was expected.
    """
    check_ids("prompt", prompt_token_ids, info)
    if len(prompt_token_ids) > info.longest:
        complaint = f"got {len(prompt_token_ids)} tokens"
        raise too_long(info.longest, "prompt", complaint)
    if params.dimensions is not None and params.dimensions > info.hidden_size:
        raise RequestError(
            f"dimensions: got {params.dimensions}, expected an integer in 1..{info.hidden_size}",
            "dimensions",
        )
    _check_mode(params.deterministic, info)


def check_ids(field: str, token_ids: Sequence[int], info: EngineInfo) -> None:
    """Refuse what is no list of the vocabulary's tokens, one at least.

    Raises:
        RequestError: naming the field.
    """
    if not len(token_ids):
        raise RequestError(f"{field}: got no tokens, expected at least one", field)
    try:
        ids = np.asarray(token_ids)
    except (ValueError, OverflowError):
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(f"{field}: expected a flat list of integer token ids", field)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= info.vocab_size:
        raise RequestError(
            f"{field}: got token id {low if low < 0 else high}, expected 0..{info.vocab_size - 1}",
            field,
        )


def _check_mode(deterministic: bool, info: EngineInfo) -> None:
    if not deterministic and not info.allow_fast:
        raise RequestError(
            "deterministic: got false, but this engine was started without the fast mode",
            "deterministic",
        )
