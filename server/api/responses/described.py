"""What ``POST /v1/responses`` answers, for the description; ``answer`` makes the values."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from detinfer.server.api.bodies.receipt import Receipt
from detinfer.server.api.openai.answers import ChatTokenLogprob, PromptTokensDetails


class OutputText(BaseModel):
    """Text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[str]
    logprobs: list[ChatTokenLogprob]


class OutputMessage(BaseModel):
    """What the model says."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class FunctionCallItem(BaseModel):
    """A call of one of the request's tools; ``arguments`` is JSON."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["in_progress", "completed", "incomplete"]


class ReasoningText(BaseModel):
    """Text of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(BaseModel):
    """What the model thought before, where the server sets it apart."""

    type: Literal["reasoning"]
    id: str
    summary: list[str]
    encrypted_content: None
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[ReasoningText]


class IncompleteDetails(BaseModel):
    """Why an answer is no whole one."""

    reason: Literal["max_output_tokens"]


class OutputTokensDetails(BaseModel):
    """Which of the answer's tokens are reasoning: none is told apart."""

    reasoning_tokens: int


class ResponsesUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: PromptTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponsesResponse(BaseModel):
    """The response; beside these fields it has those of the request as they were understood."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputMessage | FunctionCallItem | ReasoningItem]
    usage: ResponsesUsage
    metadata: dict[str, Any]
    store: bool
    digest: str
    seed: int | None
    deterministic: bool
    system_fingerprint: str
    receipt: Receipt | None = None
