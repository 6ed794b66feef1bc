"""What a request may ask for.

``SamplingParams``, and the ``n`` requests for one it amounts to; ``PoolingParams`` for a vector.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from detinfer.errors import RequestError
from detinfer.kernels.constants import (
    GREEDY_BELOW,
    SPLITMIX_GAMMA,
    SPLITMIX_MUL1,
    SPLITMIX_MUL2,
)

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_TOKENS_LIMIT = 1 << 20
MAX_N = 128
# Fields that constrain an answer, and the most characters of each: time to compile one may grow
# with the square, a minute for a megabyte.
MAX_CONSTRAINT = {"json_schema": 1 << 16, "regex": 1 << 13, "grammar": 1 << 16}

_SWITCHES = (
    "ignore_eos",
    "deterministic",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "checksums",
)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when a request ends.

    Attributes:
        max_tokens: most tokens to generate; None means up to the model's length, or
            what the KV cache holds if that is less; the fingerprint has it.
        temperature: 0 is greedy (ties to the lowest token id).
        top_k: 0 keeps all.
        repetition_penalty: divides the positive logits of tokens in the prompt or the output, and
            multiplies the others; 1 is none.
        presence_penalty: subtracted from the logits of tokens in the output.
        frequency_penalty: subtracted as often as the token is in the output.
        logit_bias: token id to what is added to its logit; kept as sorted pairs.
        n: answers to give, each with a seed of its own (``choices``).
        seed: key of the noise; None draws one (reported in the output) when temperature > 0.
        top_p: 0 keeps the likeliest token alone.
        stop: strings that end the output; not part of the text.
        stop_token_ids: token ids that end the output; part of ``token_ids``, not of the text.
        include_stop_str_in_output: whether what ended the output is part of the text after all.
        skip_special_tokens: whether the text leaves special tokens out.
        min_tokens: end-of-sequence and stop ids cannot be chosen before this many tokens.
        logprobs: number of top log-probabilities per output token; None for none at all.
        prompt_logprobs: the same for each token of the prompt but the first.
        deterministic: whether the bits must not depend on the load.
        checksums: whether each output token comes with the checksum of the logits it was chosen
            from, as the digest has them.
        json_schema: what the answer is to be valid by: JSON text, an object or a boolean; kept as
            text.
        regex: what the whole answer is to match (Rust's syntax).
        grammar: what the answer is to be a sentence of: Lark, or GBNF as llama.cpp has it. At most
            one of the three.

    Raises:
        RequestError: naming the first field that is out of range.
    """

    max_tokens: int | None = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    deterministic: bool = True
    checksums: bool = False
    json_schema: str | dict[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
                raise RequestError(f"{name}: got {value!r}, expected several in a list", name)
            object.__setattr__(self, name, tuple(value))
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, MAX_TOKENS_LIMIT)
        _number("temperature", self.temperature, 0.0, 100.0)
        _number("top_p", self.top_p, 0.0, 1.0)
        _integer("top_k", self.top_k, 0, 1 << 31)
        _number("min_p", self.min_p, 0.0, 1.0)
        # The low end is not 0: a logit over a subnormal penalty would be infinite.
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        object.__setattr__(self, "logit_bias", _bias_pairs(self.logit_bias))
        _integer("n", self.n, 1, MAX_N)
        if self.seed is not None:
            _integer("seed", self.seed, 0, (1 << 64) - 1)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(
                f"stop: got {len(self.stop)} strings, at most {MAX_STOP_STRINGS}", "stop"
            )
        for text in self.stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH:
                raise RequestError(
                    f"stop: expected strings of 1 to {MAX_STOP_LENGTH} characters", "stop"
                )
        if len(self.stop_token_ids) > 256:
            raise RequestError("stop_token_ids: at most 256 ids", "stop_token_ids")
        for token in self.stop_token_ids:
            _integer("stop_token_ids", token, 0, (1 << 31) - 1)
        _integer("min_tokens", self.min_tokens, 0, MAX_TOKENS_LIMIT)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens: got {self.min_tokens}, at most max_tokens = {self.max_tokens}",
                "min_tokens",
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 0, MAX_LOGPROBS)
        _booleans(self, _SWITCHES)
        if isinstance(self.json_schema, dict | bool):
            object.__setattr__(self, "json_schema", _json_text("json_schema", self.json_schema))
        _check_constraints({name: getattr(self, name) for name in MAX_CONSTRAINT})


@dataclass(frozen=True)
class PoolingParams:
    """What vector a request for one gets: an embedding of its prompt.

    Attributes:
        pooling: of the tokens' final hidden states: their mean, or the last one.
        normalize: whether it has length 1.
        dimensions: how many of its first numbers are kept, before that; None keeps all.
        deterministic: whether the bits must not depend on the load.

    Raises:
        RequestError: naming the first field that is out of range.
    """

    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True
    dimensions: int | None = None
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "last"):
            raise RequestError(f"pooling: got {self.pooling!r}, expected mean or last", "pooling")
        if self.dimensions is not None:
            _integer("dimensions", self.dimensions, 1, MAX_TOKENS_LIMIT)
        _booleans(self, ("normalize", "deterministic"))


def is_greedy(params: SamplingParams) -> bool:
    """Return whether the token is the argmax, with no noise."""
    return params.temperature < GREEDY_BELOW


def constraint_of(params: SamplingParams) -> tuple[str, str] | None:
    """Return the field that constrains the answer, and its text; None if none does."""
    given = ((name, getattr(params, name)) for name in MAX_CONSTRAINT)
    return next((one for one in given if one[1] is not None), None)


def choice_seed(seed: int, i: int) -> int:
    """Return the seed of choice i of a request with n > 1; choice 0 has the request's own.

    The others have the numbers that SplitMix64 started at the seed gives (Steele, Lea and Flood
    2014).
    """
    if i == 0:
        return seed
    word = (1 << 64) - 1
    z = (seed + i * SPLITMIX_GAMMA) & word
    z = (z ^ z >> 30) * SPLITMIX_MUL1 & word
    z = (z ^ z >> 27) * SPLITMIX_MUL2 & word
    return z ^ z >> 31


def noise_seed(params: SamplingParams) -> int | None:
    """Return the seed a request runs with: its own, or a drawn one if it needs noise."""
    if params.seed is None and not is_greedy(params):
        return secrets.randbits(53)  # a client may keep its numbers as doubles
    return params.seed


def choices(params: SamplingParams) -> list[SamplingParams]:
    """Return the ``n`` requests that a request for ``n`` answers amounts to.

    Each has the seed of its choice, and alone gives the same answer.
    """
    if params.n == 1:
        return [params]
    seed = noise_seed(params)
    return [
        replace(params, n=1, seed=None if seed is None else choice_seed(seed, i))
        for i in range(params.n)
    ]


def _bias_pairs(given: Any) -> tuple[tuple[int, float], ...]:
    """Return a mapping, or its pairs, in the order of token ids."""
    try:
        bias = dict(given)
    except (TypeError, ValueError):
        raise RequestError(
            f"logit_bias: got {type(given).__name__}, expected a mapping of token ids to numbers",
            "logit_bias",
        ) from None
    if len(bias) > MAX_LOGIT_BIAS:
        raise RequestError(
            f"logit_bias: got {len(bias)} entries, at most {MAX_LOGIT_BIAS}", "logit_bias"
        )
    for token, value in bias.items():
        _integer("logit_bias", token, 0, (1 << 31) - 1)
        _number("logit_bias", value, -100.0, 100.0)
    return tuple(sorted((token, float(value)) for token, value in bias.items()))


def _json_text(name: str, value: dict[str, Any] | bool) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{name}: no JSON: {type(error).__name__}: {error}", name) from None


def _check_constraints(values: Mapping[str, Any]) -> None:
    given = [name for name, value in values.items() if value is not None]
    if len(given) > 1:
        raise RequestError(
            f"{given[1]}: got it beside {given[0]}, expected one of {', '.join(values)}", given[1]
        )
    for name in given:
        text = values[name]
        if not isinstance(text, str):
            raise RequestError(f"{name}: got {type(text).__name__}, expected text", name)
        if not 0 < len(text) <= MAX_CONSTRAINT[name]:
            raise RequestError(
                f"{name}: got {len(text)} characters, expected 1 to {MAX_CONSTRAINT[name]}", name
            )
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError(f"{name}: got text that is not valid UTF-8", name)


def _booleans(params: object, names: Iterable[str]) -> None:
    for name in names:
        if not isinstance(getattr(params, name), bool):
            raise RequestError(f"{name}: got {getattr(params, name)!r}, expected a boolean", name)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{name}: got {value!r}, expected an integer in {low}..{high}", name)


def _number(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # type: ignore[operator]  # no NaN is between
        raise RequestError(f"{name}: got {value!r}, expected [{low}, {high}]", name)
