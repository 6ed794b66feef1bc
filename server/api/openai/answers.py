"""What OpenAI's routes answer, for the description; ``values`` makes the values."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from detinfer.server.api.bodies.receipt import Receipt


class PromptTokensDetails(BaseModel):
    """Which of the prompt's tokens cost nothing."""

    cached_tokens: int


class OpenAIUsage(BaseModel):
    """Token counts of all choices; each prompt counts once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(BaseModel):
    """How likely a token of the prompt, or one of the likeliest in its place, was."""

    logprob: float
    rank: int
    decoded_token: str


# One entry a token of the prompt, under token ids; null for the first.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionLogprobs(BaseModel):
    """One entry a token in each list; null for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class _Choice(BaseModel):
    """What both kinds share, beyond OpenAI's too; token ids and receipt if asked for."""

    index: int
    digest: str
    seed: int | None
    deterministic: bool
    token_ids: list[int] | None = None
    receipt: Receipt | None = None


class CompletionResponseChoice(_Choice):
    """One answer to one prompt."""

    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None

    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: CompletionLogprobs | None


class _Response(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: OpenAIUsage


class CompletionResponse(_Response):
    """The answer of ``/v1/completions``; chunks have the same fields."""

    object: Literal["text_completion"]
    choices: list[CompletionResponseChoice]


class TopLogprob(BaseModel):
    """A token that could have been."""

    token: str
    bytes: list[int]
    logprob: float


class ChatTokenLogprob(TopLogprob):
    """A token that was."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """One entry a token."""

    content: list[ChatTokenLogprob]
    refusal: None


class FunctionCall(BaseModel):
    """What is called; the arguments are JSON, as text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call; in a chunk with its index, and after its first one with more arguments alone."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(BaseModel):
    """The answer itself; calls if there are any, reasoning if the server sets it apart."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatResponseChoice(_Choice):
    """One answer."""

    message: AssistantMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: ChatLogprobs | None


class ChatCompletionResponse(_Response):
    """The answer of ``/v1/chat/completions``; chunks have ``delta`` in place of ``message``."""

    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    object: Literal["chat.completion"]
    choices: list[ChatResponseChoice]
