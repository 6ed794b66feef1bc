"""What a step adds to a request, and how its reader is told."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from detinfer.engine.outputs import RequestOutput
from detinfer.engine.request import Request
from detinfer.logprobs import TokenLogprob

logger = logging.getLogger(__name__)


@dataclass
class Increment:
    """What a step adds to a request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""


def output_of(request: Request, new: Increment) -> RequestOutput:
    """Return an increment as it goes out."""
    is_first = bool(new.token_ids) and len(new.token_ids) == request.completion_tokens
    scored = request.params.prompt_logprobs is not None and is_first
    return RequestOutput(
        request_id=request.request_id,
        text=new.text,
        token_ids=list(new.token_ids),
        logprobs=None if request.params.logprobs is None else list(new.logprobs),
        finish_reason=None,
        digest=None,
        seed=request.seed,
        deterministic=request.params.deterministic,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.completion_tokens,
        cached_tokens=request.cached_tokens or 0,
        queue_time=(request.started or time.monotonic()) - request.arrived,
        prompt_logprobs=request.prompt_logprobs if scored else None,
    )


def failure_of(request: Request, error: Exception) -> RequestOutput:
    """Return the last increment of a request that something raised for: no more calls for it."""
    logger.error("request %s failed", request.request_id, exc_info=error)
    return RequestOutput(
        request_id=request.request_id,
        text="",
        token_ids=[],
        logprobs=None if request.params.logprobs is None else [],
        finish_reason="error",
        digest=None,
        seed=request.seed,
        deterministic=request.params.deterministic,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=len(request.token_ids) - request.prompt_tokens,
        cached_tokens=request.cached_tokens or 0,
        error=f"the step failed: {type(error).__name__}: {error}",
    )
