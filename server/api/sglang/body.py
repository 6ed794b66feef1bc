"""SGLang's body of ``POST /generate``, and the call it amounts to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field

from detinfer.errors import RequestError
from detinfer.params import MAX_LOGPROBS, MAX_TOKENS_LIMIT
from detinfer.server.api.bodies.fields import (
    Integer,
    Logprobs,
    MinTokens,
    Name,
    Prompt,
    Prompts,
    Seed,
    Text,
    Texts,
    WithReceipt,
    check_names,
    documented,
)
from detinfer.server.api.bodies.neutral import Absent, Neutral, Off, Zero
from detinfer.server.api.bodies.receipt import Receipt
from detinfer.server.api.bodies.sampling import Sampling, given_prompts, given_sampling
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.bodies.structured import GrammarOrEmpty, JsonSchemaOrEmpty, RegexOrEmpty
from detinfer.server.call import Call, check_prompts, check_range, sampling_params

Place = Annotated[Integer, documented(-1, MAX_TOKENS_LIMIT)]
# Beyond null: what a field is where nobody asked for what it does.
Empty = Annotated[Any, Neutral("", [], {})]


class SGLangSampling(Sampling):
    """SGLang's ``sampling_params``; null means left out."""

    max_new_tokens: MinTokens | None = Field(
        None, description="128 unless given; 0 only reads the prompt"
    )
    min_new_tokens: MinTokens | None = None
    sampling_seed: Seed | None = None
    stop_regex: Empty = None
    regex: RegexOrEmpty = None
    json_schema: JsonSchemaOrEmpty = None
    ebnf: GrammarOrEmpty = None
    structural_tag: Empty = None
    custom_params: Empty = None
    no_stop_trim: bool | None = Field(None, description="keep what ended the text")
    watermark: Off = None
    beam_width: Annotated[Any, Neutral(1)] = None
    stream_interval: Annotated[Any, Neutral(1)] = None


class SGLangRequest(StrictBody):
    """The body of ``POST /generate`` in SGLang's dialect; one of text and input_ids."""

    several_types: ClassVar[dict[str, str]] = {
        **StrictBody.several_types,
        "text": "a string or a list of strings",
        "input_ids": "a list of token ids or a list of such lists",
        "rid": "a string or a list of strings",
    }

    text: Text | Texts | None = None
    input_ids: Prompt | Prompts | None = None
    sampling_params: SGLangSampling | None = None
    deterministic: bool | None = None
    receipt: WithReceipt = None
    stream: bool | None = Field(None, description="events with the text so far")
    rid: Text | Texts | None = Field(None, description="the answer's id, or the ids of several")
    return_logprob: bool | None = None
    logprob_start_len: Place | None = Field(
        None,
        description="with return_logprob: the prompt's from this token on; -1, as unless given, is "
        "none; unless given 0 where only the prompt is read",
    )
    top_logprobs_num: Logprobs | None = Field(
        None, description="with return_logprob: the likeliest tokens at each place"
    )
    return_text_in_logprobs: bool | None = None
    return_prompt_token_ids: bool | None = None
    cache_salt: Name | None = Field(None, description="share cached prefixes within it only")
    extra_key: Name | None = Field(None, description="as cache_salt, and beside it")
    # What a request is filed under; here nothing is.
    session_id: str | None = Field(None, description="ignored")
    conversation_id: str | None = Field(None, description="ignored")
    routing_key: str | None = Field(None, description="ignored")
    no_logs: bool | None = Field(None, description="ignored: texts are never logged")
    log_metrics: Annotated[Any, Neutral(True)] = None
    custom_labels: Empty = None
    external_trace_header: Empty = None
    received_time: Absent = None
    background: Off = None
    priority: Zero = None
    session_params: Empty = None
    kv_hints: Empty = None
    token_ids_logprob: Empty = None
    return_hidden_states: Off = None
    return_routed_experts: Off = None
    routed_experts_start_len: Zero = None
    return_indexer_topk: Off = None
    return_sampling_mask: Off = None
    sampling_logprobs_mode: Absent = None
    return_flat_raw_top_logprobs: Off = None
    return_flat_raw_output_top_logprobs: Off = None
    return_flat_raw_top_logprobs_b64: Off = None
    return_bytes: Off = None
    return_entropy: Off = None
    require_reasoning: Off = None
    max_thinking_tokens: Absent = None
    watermark: Off = None
    custom_logit_processor: Empty = None
    lora_path: Empty = None
    lora_id: Empty = None
    input_embeds: Empty = None
    positional_embed_overrides: Empty = None
    multi_item_delimiter_indices: Empty = None
    token_indices_to_pool: Empty = None
    image_data: Empty = None
    video_data: Empty = None
    audio_data: Empty = None
    modalities: Empty = None
    mm_hashes: Empty = None
    mm_content_hashes: Empty = None
    mm_processor_kwargs: Empty = None
    images_config: Empty = None
    video_config: Empty = None
    use_audio_in_video: Off = None
    max_dynamic_patch: Absent = None
    min_dynamic_patch: Absent = None
    image_max_dynamic_patch: Absent = None
    video_max_dynamic_patch: Absent = None
    need_wait_for_mm_inputs: Off = None
    num_items_assigned: Empty = None
    encoder_urls: Empty = None
    bootstrap_host: Empty = None
    bootstrap_port: Absent = None
    bootstrap_room: Absent = None
    bootstrap_pair_key: Empty = None
    decode_tp_size: Absent = None
    routed_dp_rank: Zero = None
    data_parallel_rank: Zero = None
    disagg_prefill_dp_rank: Zero = None
    http_worker_ipc: Empty = None


class SGLangMeta(BaseModel):
    """What an answer has beside its text; ours too, once it has ended."""

    id: str
    finish_reason: dict[str, Any] | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    receipt: Receipt | None = None


class SGLangResponse(BaseModel):
    """One answer in SGLang's words; a list of prompts gives a list of these."""

    text: str
    output_ids: list[int]
    meta_info: SGLangMeta


@dataclass(frozen=True, kw_only=True)
class SGLangCall(Call):
    """A validated body.

    Attributes:
        names: ids of the answers, if the client gave any.
        prompt_only: nothing is wanted but the prompt: one token is generated, and not given.
        logprob_start: the token of the prompt from which on log-probabilities are given.
        with_texts: whether log-probabilities have their tokens' text.
        with_prompt: whether answers have the prompt's token ids.
    """

    names: list[str] | None
    prompt_only: bool
    logprob_start: int | None
    with_texts: bool
    with_prompt: bool


def sglang_call(body: SGLangRequest, default_deterministic: bool) -> SGLangCall:
    """Resolve defaults.

    Raises:
        RequestError: no prompt, two prompts, a value out of range, or ids for other prompts.
    """
    prompt_field, prompts, many = given_prompts(body, ("text", "input_ids"))
    values, sources = given_sampling(body.sampling_params, "sampling_params.")
    deterministic = body.deterministic
    values["deterministic"] = default_deterministic if deterministic is None else deterministic
    prompt_only = values.get("max_tokens") == 0
    if prompt_only:
        values["max_tokens"] = 1
    start = body.logprob_start_len
    if start is None:
        start = 0 if prompt_only else -1
    check_names(body, "cache_salt", "extra_key")
    check_range("logprob_start_len", start, -1, MAX_TOKENS_LIMIT)
    check_range("top_logprobs_num", body.top_logprobs_num, 0, MAX_LOGPROBS)
    if body.return_logprob:
        values["logprobs"] = body.top_logprobs_num or 0
        values["prompt_logprobs"] = None if start < 0 else values["logprobs"]
        sources |= {"logprobs": "top_logprobs_num", "prompt_logprobs": "top_logprobs_num"}
    params = sampling_params(values, sources)
    check_prompts(prompts, prompt_field, params.n, sources)
    return SGLangCall(
        prompts=prompts,
        prompt_field=prompt_field,
        params=params,
        sources=sources,
        stream=bool(body.stream),
        receipt=bool(body.receipt),
        many=many or params.n > 1,
        names=_names(body.rid, len(prompts), params.n),
        prompt_only=prompt_only,
        logprob_start=start if body.return_logprob and start >= 0 else None,
        with_texts=bool(body.return_text_in_logprobs),
        with_prompt=bool(body.return_prompt_token_ids),
        cache_salt="/".join(filter(None, (body.cache_salt, body.extra_key))),
    )


def _names(rid: str | list[str] | None, prompts: int, n: int) -> list[str] | None:
    """Return an id for each answer: the client's own, numbered where it has several answers."""
    if rid is None:
        return None
    if isinstance(rid, str):
        count = prompts * n
        return [f"{rid}_{index}" for index in range(count)] if count > 1 else [rid]
    if len(rid) != prompts:
        raise RequestError(f"rid: got {len(rid)} ids for {prompts} prompts", "rid")
    return [f"{name}_{index}" if n > 1 else name for name in rid for index in range(n)]
