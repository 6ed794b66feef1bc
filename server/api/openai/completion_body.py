"""The body of ``POST /v1/completions``, and the call it amounts to."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from detinfer.errors import RequestError
from detinfer.server.api.bodies.fields import (
    Integer,
    Logprobs,
    MinTokens,
    Prompt,
    Prompts,
    Text,
    Texts,
    needs,
)
from detinfer.server.api.bodies.neutral import Empty, Neutral
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.openai.common_body import OpenAIBody, OpenAICall, common, sampling_values
from detinfer.server.call import check_prompts, sampling_params


class CompletionRequest(OpenAIBody):
    """The body of ``POST /v1/completions``."""

    several_types: ClassVar[dict[str, str]] = {
        **StrictBody.several_types,
        "prompt": "a string, a list of strings, of token ids, or of lists of token ids",
    }

    model_config = ConfigDict(json_schema_extra=needs("prompt"))

    prompt: Text | Texts | Prompt | Prompts | None = None
    max_tokens: MinTokens | None = Field(None, description="16 unless given; 0 only with echo")
    echo: bool | None = Field(None, description="begin the text, and the logprobs, with the prompt")
    logprobs: Logprobs | None = None
    best_of: Integer | None = Field(None, description="n, if given")
    suffix: Annotated[Any, Neutral("")] = None
    prompt_embeds: Empty = None


def completion_call(body: CompletionRequest, default_deterministic: bool) -> OpenAICall:
    """Resolve defaults.

    Raises:
        RequestError: no prompt, a value out of range, or fields that do not go together.
    """
    if body.prompt is None:
        expected = CompletionRequest.several_types["prompt"]
        raise RequestError(f"prompt: missing, expected {expected}", "prompt")
    values, sources = sampling_values(body, default_deterministic)
    echo = bool(body.echo)
    prompt_only = body.max_tokens == 0
    if prompt_only and not echo:
        raise RequestError("max_tokens: got 0 without echo, expected at least 1", "max_tokens")
    if body.max_tokens is not None:
        sources["max_tokens"] = "max_tokens"
    values["max_tokens"] = 16 if body.max_tokens is None else body.max_tokens or 1
    values["logprobs"] = body.logprobs
    scored = (body.prompt_logprobs, body.logprobs if echo else None)
    values["prompt_logprobs"] = max((k for k in scored if k is not None), default=None)
    params = sampling_params(values, sources)
    if body.best_of not in (None, params.n):
        raise RequestError(
            f"best_of: got {body.best_of}, not supported yet, expected n = {params.n} or null",
            "best_of",
        )
    prompts: Any = body.prompt
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    check_prompts(prompts, "prompt", params.n, sources)
    return OpenAICall(
        prompts=prompts,
        prompt_field="prompt",
        params=params,
        sources=sources,
        echo=echo,
        add_special_tokens=body.add_special_tokens is not False,
        **common(body, body.logprobs, prompt_only),
    )
