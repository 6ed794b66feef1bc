"""How a request's reader is told what a step adds to it."""

from __future__ import annotations

import hashlib
import logging
import time

from detinfer.engine.outcome import Increment
from detinfer.engine.outputs import RequestOutput
from detinfer.engine.request import Request

logger = logging.getLogger(__name__)


def output_of(request: Request, new: Increment) -> RequestOutput:
    """Return an increment as it goes out."""
    is_first = bool(new.token_ids) and len(new.token_ids) == request.completion_tokens
    scored = request.params.prompt_logprobs is not None and is_first
    return RequestOutput(
        request_id=request.request_id,
        text=new.text,
        token_ids=new.token_ids,
        logprobs=None if request.params.logprobs is None else new.logprobs,
        finish_reason=new.finish_reason,
        digest=_digest(request, new),
        seed=request.seed,
        deterministic=request.params.deterministic,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=request.completion_tokens,
        cached_tokens=request.cached_tokens or 0,
        queue_time=(request.started or time.monotonic()) - request.arrived,
        error=new.error,
        prompt_logprobs=request.prompt_logprobs if scored else None,
        stop_reason=request.stop_reason if new.finish_reason == "stop" else None,
        checksums=new.checksums if request.params.checksums else None,
        embedding=new.embedding,
    )


def _digest(request: Request, new: Increment) -> str | None:
    if new.embedding is not None:
        return hashlib.sha256(new.embedding).hexdigest()
    return None if new.finish_reason is None else request.digest.hexdigest()


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
