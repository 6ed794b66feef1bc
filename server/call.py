"""A validated request, whatever the dialect it came in, and the engine's jobs it amounts to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.outputs import EngineInfo
from detinfer.engine.streams import MAX_OPEN_TOKENS
from detinfer.engine.validation import check_request
from detinfer.errors import RequestError
from detinfer.params import SamplingParams, choices
from detinfer.receipts.receipt import receipt_params
from detinfer.server.generation import Job
from detinfer.server.limits import (
    MAX_CHOICES,
    MAX_LOGPROBS_OF_CALL,
    MAX_PROMPTS,
    MAX_RECEIPT_TOKENS_OF_CALL,
)
from detinfer.server.tokenizing import tokenize


@dataclass(frozen=True)
class Truncation:
    """How a prompt is cut that has too many tokens.

    Attributes:
        most: tokens to keep; None keeps what leaves room for the answer.
        left: whether its beginning goes, or its end.
    """

    most: int | None
    left: bool = True

    def keep(self, token_ids: list[int], room: int) -> list[int]:
        """Return what is left of a prompt; ``room`` is what the answer leaves it."""
        most = self.most or max(1, room)
        return token_ids[-most:] if self.left else token_ids[:most]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A validated body.

    Attributes:
        prompts: texts, or lists of token ids.
        prompt_field: the field the prompts came in.
        params: of every prompt; ``max_tokens`` of None is what the model's length leaves.
        sources: our name of each given field, to the name the client used.
        add_special_tokens: whether the tokenizer adds its own to texts.
        truncation: of the prompts, if they are to be cut at all.
        cache_salt: of the client's choosing, beside what its key has.
        receipt: whether each answer comes with its receipt.
        many: whether the answer is a list, where the dialect has both.
    """

    prompts: list[str] | list[list[int]]
    prompt_field: str
    params: SamplingParams
    sources: dict[str, str]
    stream: bool
    add_special_tokens: bool = True
    truncation: Truncation | None = None
    cache_salt: str = ""
    receipt: bool = False
    many: bool = False

    def choices_for(self, prompt_token_ids: list[int], info: EngineInfo) -> list[SamplingParams]:
        """Return the parameters of each answer to one prompt.

        A ``max_tokens`` that was not given is clamped to what fits.

        Raises:
            RequestError: the model or its KV cache cannot hold the request, or nothing would
                replay the answer.
        """
        params = self.params
        try:
            if "max_tokens" not in self.sources:
                room = max(1, info.longest - len(prompt_token_ids))
                params = replace(params, max_tokens=min(params.max_tokens or room, room))
            answers = choices(params)
            most = check_request(prompt_token_ids, answers[0], info)
            if self.receipt:
                answers = [receipt_params(one, most) for one in answers]
        except RequestError as error:
            sources = self.sources | {"prompt": self.prompt_field}
            raise in_words_of_client(error, sources) from None
        return answers

    async def jobs(self, engine: AsyncEngine, name: str, cache_salt: str) -> list[Job]:
        """One job an answer: the first prompt's, then the second's, and so on.

        Raises:
            RequestError: as ``choices_for``, or a text that cannot be tokenised.
        """
        prompts: list[Any] = self.prompts
        if isinstance(prompts[0], str):
            prompts = await tokenize(engine, prompts, self.prompt_field, self.add_special_tokens)
        if self.truncation is not None:
            answer = self.params.max_tokens if "max_tokens" in self.sources else 1
            room = engine.info.longest - (answer or 1)
            prompts = [self.truncation.keep(ids, room) for ids in prompts]
        if self.cache_salt:
            cache_salt = f"{cache_salt}/{self.cache_salt}"
        answers = [(ids, one) for ids in prompts for one in self.choices_for(ids, engine.info)]
        if len(answers) > engine.capacity:
            field = self.sources.get("n", "n") if self.params.n > 1 else self.prompt_field
            raise RequestError(
                f"{field}: got {len(answers)} answers to give, this server has room for "
                f"{engine.capacity} at a time",
                field,
            )
        if (tokens := sum(len(ids) for ids, _ in answers)) > MAX_OPEN_TOKENS:
            raise RequestError(
                f"{self.prompt_field}: got {tokens} prompt tokens in all answers of a call, "
                f"expected at most {MAX_OPEN_TOKENS}",
                self.prompt_field,
            )
        if (logprobs := sum(_logprobs(*answer) for answer in answers)) > MAX_LOGPROBS_OF_CALL:
            field = self.sources.get("logprobs", "logprobs")
            raise RequestError(
                f"{field}: got a call that may need {logprobs} of them, expected at most "
                f"{MAX_LOGPROBS_OF_CALL}: fewer tokens, answers or top ones",
                field,
            )
        if self.receipt and (tokens := sum(map(_tokens, answers))) > MAX_RECEIPT_TOKENS_OF_CALL:
            field = self.sources.get("receipt", "receipt")
            raise RequestError(
                f"{field}: got a call whose receipts may have {tokens} tokens, expected at most "
                f"{MAX_RECEIPT_TOKENS_OF_CALL}",
                field,
            )
        return [
            Job(f"{name}-{index}" if len(answers) > 1 else name, ids, params, cache_salt)
            for index, (ids, params) in enumerate(answers)
        ]


def _tokens(answer: tuple[list[int], SamplingParams]) -> int:
    """Tokens of a prompt, and those that its answer may have."""
    return len(answer[0]) + (answer[1].max_tokens or 0)


def _logprobs(prompt_token_ids: list[int], params: SamplingParams) -> int:
    """Log-probabilities that one answer may come to."""
    output = 0 if params.logprobs is None else (params.max_tokens or 0) * (params.logprobs + 1)
    if params.prompt_logprobs is None:
        return output
    return output + len(prompt_token_ids) * (params.prompt_logprobs + 1)


def sampling_params(values: Mapping[str, Any], sources: Mapping[str, str]) -> SamplingParams:
    """Return the parameters a body asks for, as JSON has them.

    Raises:
        RequestError: a value out of range, under the name the client used.
    """
    given = dict(values)
    if given.get("top_k") == -1:
        given["top_k"] = 0
    if "logit_bias" in given:
        given["logit_bias"] = {int(key): bias for key, bias in given["logit_bias"].items()}
    try:
        return SamplingParams(**given)
    except RequestError as error:
        raise in_words_of_client(error, sources) from None


def check_prompts(prompts: list[Any], field: str, n: int, sources: Mapping[str, str]) -> None:
    """Refuse no prompts, empty ones, and more answers than a call may ask for.

    Raises:
        RequestError: naming the field.
    """
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise RequestError(
            f"{field}: got {len(prompts)} prompts, expected 1 to {MAX_PROMPTS}", field
        )
    if not all(prompts):
        kind = "token ids" if isinstance(prompts[0], list) else "text"
        raise RequestError(f"{field}: got an empty prompt, expected {kind}", field)
    if len(prompts) * n > MAX_CHOICES:
        name = sources.get("n", "n")
        raise RequestError(
            f"{name}: got {n} answers for each of {len(prompts)} prompts, expected at most "
            f"{MAX_CHOICES} in all",
            name,
        )


def check_range(field: str, value: int | None, low: int, high: int) -> None:
    """Refuse an integer out of its range, where no parameter of the engine is one to judge it.

    Raises:
        RequestError: naming the field.
    """
    if value is not None and not low <= value <= high:
        raise RequestError(f"{field}: got {value}, expected an integer in {low}..{high}", field)


def in_words_of_client(error: RequestError, sources: Mapping[str, str]) -> RequestError:
    """Return the same complaint under the name the client used: max_new_tokens, not max_tokens."""
    name = error.param or ""
    source = sources.get(name, name)
    message = str(error)
    if name:
        message = re.sub(rf"(^|However, ){name}\b", lambda found: found[1] + source, message)
    return RequestError(message, source or None, error.code)
