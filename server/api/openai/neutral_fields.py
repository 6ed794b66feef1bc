"""Fields of OpenAI's, vLLM's and SGLang's requests that are not built.

Each is accepted at the values that change nothing here, its server's own default among them, and
refused by name at any other. Null always is a field left out. ``Ignored`` fields are for the books
of whoever sends them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from detinfer.server.api.bodies.neutral import (
    Absent,
    Either,
    Empty,
    Ignored,
    Neutral,
    NoOptions,
    Off,
    Zero,
)
from detinfer.server.api.bodies.strict import StrictBody


class NeutralFields(StrictBody):
    """Of both of OpenAI's routes."""

    user: Ignored = None
    metadata: dict[str, Any] | None = Field(None, description="ignored")
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    store: Off = None
    service_tier: Annotated[Any, Neutral("auto", "default")] = None
    # vLLM's
    session_id: Ignored = None
    priority: Zero = None
    use_beam_search: Off = None
    length_penalty: Annotated[Any, Neutral(1.0)] = None
    early_stopping: Off = None
    spaces_between_special_tokens: Either = None  # the tokenizers' decoders put none there
    allowed_token_ids: Absent = None
    bad_words: Empty = None
    logprob_token_ids: Empty = None
    logits_processors: Empty = None
    guided_decoding_backend: Absent = None
    guided_whitespace_pattern: Absent = None
    repetition_detection: Absent = None
    thinking_token_budget: Annotated[Any, Neutral(-1)] = None
    watermarking: Off = None
    stream_interval: Annotated[Any, Neutral(1)] = None
    routed_experts_prompt_start: Zero = None
    return_token_offsets: Off = None
    mm_payload: Annotated[Any, Neutral("tensors", "none")] = None
    mm_processor_kwargs: NoOptions = None
    return_mm_kwargs: Either = None
    kv_transfer_params: NoOptions = None
    ec_transfer_params: NoOptions = None
    vllm_xargs: NoOptions = None
    # SGLang's
    stop_regex: Empty = None
    no_stop_trim: Off = None
    lora_path: Absent = None
    rid: Absent = None
    extra_key: Absent = None
    session_params: NoOptions = None
    custom_params: NoOptions = None
    custom_labels: NoOptions = None
    custom_logit_processor: Absent = None
    watermark: Absent = None
    images_config: NoOptions = None
    data_parallel_rank: Absent = None
    return_hidden_states: Off = None
    return_routed_experts: Off = None
    routed_experts_start_len: Zero = None
    return_cached_tokens_details: Off = None
    return_spec_tokens_details: Off = None


class NeutralChatFields(StrictBody):
    """Of the chat route only."""

    functions: Empty = None
    function_call: Annotated[Any, Neutral("none", "auto")] = None
    modalities: Annotated[Any, Neutral(["text"])] = None
    audio: Absent = None
    prediction: Absent = None
    verbosity: Annotated[Any, Neutral("medium")] = None
    web_search_options: Absent = None
    moderation: Absent = None
    prompt_cache_options: NoOptions = None
    prompt_cache_retention: Annotated[Any, Neutral("in_memory")] = None
    # vLLM's
    chat_template: Absent = None
    documents: Empty = None
    media_io_kwargs: NoOptions = None
    return_prompt_text: Off = None
    # SGLang's
    stream_reasoning: Either = None  # how a stream is cut up is nobody's to choose
    thinking: Absent = None
    task: Absent = None
    input_ids: Absent = None
    return_prompt_token_ids: Off = None
    return_meta_info: Off = None
    return_input_ids_in_sglext: Off = None
    return_output_ids_in_sglext: Off = None
    return_sampling_mask: Off = None
    sampling_logprobs_mode: Absent = None
    return_flat_raw_output_top_logprobs: Off = None
    return_flat_raw_top_logprobs_b64: Either = None
    min_dynamic_patch: Absent = None
    max_dynamic_patch: Absent = None
    use_audio_in_video: Off = None
    video_config: NoOptions = None


class NeutralMessageFields(StrictBody):
    """Of a chat's messages."""

    function_call: Absent = None
    refusal: Absent = None
    audio: Absent = None
    annotations: Empty = None
    tools: Empty = None
    prefix: Off = None
    phase: Absent = None
    task: Absent = None
