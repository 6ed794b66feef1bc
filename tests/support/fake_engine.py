"""A trivial engine behind AsyncEngine's interface, for tests of the HTTP side."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncGenerator, Sequence
from hashlib import sha256
from typing import Any

from detinfer.engine.detokenizer import Detokenizer, StopStrings, special_tokens, token_decoder
from detinfer.engine.outputs import EngineInfo, RequestOutput
from detinfer.errors import (
    EngineDeadError,
    GenerationTimeoutError,
    QueueFullError,
    RequestError,
)
from detinfer.logprobs import TokenLogprob
from detinfer.params import SamplingParams, is_greedy, noise_seed

INFO = EngineInfo(
    model_name="fake-model",
    max_model_len=256,
    vocab_size=256,
    hidden_size=8,
    eos_token_ids=(0,),
    num_pages=8,
    max_num_seqs=4,
    allow_fast=True,
    plan="fused",
    dtype="float32",
    kv_cache_dtype="float32",
    profile="portable",
    fingerprint={"weights": "w" * 8, "contract": "portable-1"},
    system_fingerprint="detinfer-0.1.0-portable-1-0123456789ab",
)


CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>' + (bot | default('assistant')) + '\\n' }}
{%- endif %}"""


@functools.cache
def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE, size: int = 256) -> Any:
    """A real tokenizer of one token a byte; the first three ids are special tokens.

    Args:
        size: of its vocabulary: 128 knows ASCII alone.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {
        character: byte for byte, character in bytes_to_unicode().items() if 2 < byte < size
    }
    vocabulary |= {token: index for index, token in enumerate(special)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[0],
        chat_template=chat_template,
    )


class FakeEngine:
    """Answers with the letters after the sum of the prompt's tokens.

    Attributes:
        script: the bytes to answer with instead, again and again; a byte is a token.
        delay: seconds between tokens.
        fail_after: tokens before the engine gives up on a request.
        die_after: tokens before the engine dies.
        time_out_after: tokens before a request's time is up.
        running: requests that are neither finished nor aborted.
        aborted: ids of requests whose consumer went away.
    """

    def __init__(
        self,
        *,
        delay: float = 0.0,
        fail_after: int | None = None,
        die_after: int | None = None,
        time_out_after: int | None = None,
        queue_full: bool = False,
        script: bytes | None = None,
        chat_template: str | None = CHAT_TEMPLATE,
        cached_tokens: int = 0,
    ) -> None:
        self.info = INFO
        self.tokenizer = byte_tokenizer(chat_template)
        self.script = script
        self.cached_tokens = cached_tokens
        self.state = "ready"
        self.pid = os.getpid()
        self.capacity = 260
        self.delay = delay
        self.fail_after = fail_after
        self.die_after = die_after
        self.time_out_after = time_out_after
        self.queue_full = queue_full
        self.running: dict[str, SamplingParams] = {}
        self.aborted: list[str] = []
        self.prompts: list[list[int]] = []
        self.seen: list[SamplingParams] = []
        self.salts: list[str] = []

    async def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        request_id: str,
        cache_salt: str = "",
        answer: Sequence[int] = (),
    ) -> AsyncGenerator[RequestOutput, None]:
        if self.queue_full:
            raise QueueFullError("the queue is full: 256 requests wait", retry_after=3)
        if request_id in self.running:
            raise AssertionError(f"request id {request_id} is used twice")
        if params.stop_token_ids == (13,):
            raise RequestError("stop_token_ids: 13 is unlucky", "stop_token_ids")
        self.running[request_id] = params
        self.prompts.append(prompt_token_ids)
        self.seen.append(params)
        self.salts.append(cache_salt)
        own = _Answer(self, request_id, prompt_token_ids, params)
        finished = False
        try:
            for _ in range(params.max_tokens or 0):
                await asyncio.sleep(self.delay)
                if self.state == "dead":
                    raise EngineDeadError("the engine process ended")
                if self.die_after is not None and own.count >= self.die_after:
                    self.state = "dead"
                    raise EngineDeadError("the engine process ended")
                if own.count == self.time_out_after:
                    raise GenerationTimeoutError("the answer took more than 600 s")
                output = own.next()
                finished = output.finish_reason is not None
                yield output
                if finished:
                    return
        finally:
            del self.running[request_id]
            if not finished:
                self.aborted.append(request_id)

    async def stats(self) -> dict[str, Any]:
        return {"running": len(self.running), "waiting": 0}

    async def ended(self) -> str:
        while self.state != "dead":
            await asyncio.sleep(0.05)
        return "the engine process ended"

    async def shutdown(self, timeout: float) -> None:
        self.state = "dead"
        async with asyncio.timeout(5):
            while self.running:
                await asyncio.sleep(0.01)


class _Answer:
    """One answer, token by token."""

    def __init__(
        self, engine: FakeEngine, request_id: str, prompt: list[int], params: SamplingParams
    ) -> None:
        self._engine, self._id, self._prompt, self._params = engine, request_id, prompt, params
        self._seed = noise_seed(params)
        noise = 0 if is_greedy(params) else self._seed or 0
        self._start = sum(prompt) + noise + 1
        self._special = special_tokens(engine.tokenizer) if params.skip_special_tokens else {}
        decode = token_decoder(engine.tokenizer)
        self._detokenizer = Detokenizer(decode, prompt, self._special)
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)
        self.count = 0

    def next(self) -> RequestOutput:
        engine, params = self._engine, self._params
        self.count += 1
        failed = engine.fail_after is not None and self.count > engine.fail_after
        script = engine.script
        token = (
            97 + (self._start + self.count - 1) % 26
            if script is None
            else script[(self.count - 1) % len(script)]
        )
        eos = token in engine.info.eos_token_ids and not params.ignore_eos
        text = self._detokenizer.push(token)
        text, stopped = self._stops.push(text, self._special.get(token, ""))
        reason = "stop" if stopped or eos else "length" if self.count == params.max_tokens else None
        if reason and not stopped:
            tail, _ = self._stops.push(self._detokenizer.finish())
            text += tail + self._stops.finish()
        reason_to_stop = (token if eos else self._stops.found) if reason == "stop" else None
        known = (self._prompt, self._seed, self.count)
        return RequestOutput(
            request_id=self._id,
            text="" if failed else text,
            token_ids=[] if failed else [token],
            logprobs=None if params.logprobs is None else [logprob(token, params.logprobs)],
            finish_reason="error" if failed else reason,  # type: ignore[arg-type]
            stop_reason=reason_to_stop,
            digest=sha256(repr(known).encode()).hexdigest() if reason else None,
            seed=self._seed,
            deterministic=params.deterministic,
            prompt_tokens=len(self._prompt),
            completion_tokens=self.count,
            cached_tokens=engine.cached_tokens,
            error="logits: NaN at token 3" if failed else None,
            prompt_logprobs=[logprob(one, params.prompt_logprobs) for one in self._prompt[1:]]
            if params.prompt_logprobs is not None and self.count == 1
            else None,
        )


def logprob(token: int, count: int) -> TokenLogprob:
    """The likeliest token is always the one chosen; the others are those after it."""
    return TokenLogprob(token, -0.5, [((token + i) % 256, -0.5 - i) for i in range(count)], 1)
