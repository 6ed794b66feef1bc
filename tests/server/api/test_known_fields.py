"""Every field that OpenAI's SDK, vLLM and SGLang know: null and their defaults change nothing."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeEngine

from detinfer.server.api.bodies.neutral import Neutral
from detinfer.server.api.openai.chat_body import ChatCompletionRequest
from detinfer.server.api.openai.completion_body import CompletionRequest
from detinfer.server.api.openai.neutral_fields import NeutralChatFields, NeutralFields

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
NEEDED = {COMPLETIONS: {"prompt": "x"}, CHAT: {"messages": [{"role": "user", "content": "x"}]}}
MODELS = {COMPLETIONS: CompletionRequest, CHAT: ChatCompletionRequest}

# With their defaults, as of openai 3.54.0, vLLM 0.32.0 (entrypoints/openai/*/protocol.py) and
# SGLang 0.5.23 (srt/entrypoints/openai/protocol.py).
OPENAI = {
    "model": None, "frequency_penalty": 0, "logit_bias": None, "n": 1, "presence_penalty": 0,
    "seed": None, "stop": None, "stream_options": None, "temperature": 1, "top_p": 1, "user": "me",
    "stream": False, "max_tokens": None,
}  # fmt: skip
OPENAI_COMPLETIONS = {"best_of": 1, "echo": False, "logprobs": None, "suffix": None}
OPENAI_CHAT = {
    "audio": None, "function_call": "none", "functions": [], "logprobs": False,
    "max_completion_tokens": None, "metadata": {}, "modalities": ["text"], "moderation": None,
    "parallel_tool_calls": True, "prediction": None, "prompt_cache_key": "k",
    "prompt_cache_options": {}, "prompt_cache_retention": "in_memory", "reasoning_effort": "medium",
    "response_format": {"type": "text"}, "safety_identifier": "me", "service_tier": "auto",
    "store": False, "tool_choice": "auto", "tools": [], "top_logprobs": 0, "verbosity": "medium",
    "web_search_options": None,
}  # fmt: skip
VLLM = {
    "use_beam_search": False, "top_k": None, "min_p": None, "repetition_penalty": None,
    "watermarking": None, "length_penalty": 1.0, "stop_token_ids": [],
    "include_stop_str_in_output": False, "ignore_eos": False, "min_tokens": 0,
    "skip_special_tokens": True, "spaces_between_special_tokens": True,
    "truncate_prompt_tokens": None, "truncation_side": None, "allowed_token_ids": None,
    "prompt_logprobs": None, "logprob_token_ids": None, "bad_words": [], "response_format": None,
    "structured_outputs": None, "priority": 0, "request_id": "mine", "session_id": None,
    "return_tokens_as_token_ids": None, "return_token_ids": None, "routed_experts_prompt_start": 0,
    "return_token_offsets": False, "mm_payload": "tensors", "return_mm_kwargs": None,
    "cache_salt": None, "kv_transfer_params": None, "ec_transfer_params": None, "vllm_xargs": None,
    "repetition_detection": None, "thinking_token_budget": None, "stream_interval": None,
    "seed": -1, "stop": [],
    # Of earlier releases.
    "early_stopping": False, "logits_processors": None, "guided_json": None, "guided_regex": None,
    "guided_choice": None, "guided_grammar": None, "guided_decoding_backend": None,
    "guided_whitespace_pattern": None,
}  # fmt: skip
VLLM_COMPLETIONS = {"prompt_embeds": None, "add_special_tokens": True, "max_tokens": 16}
VLLM_CHAT = {
    "top_logprobs": 0, "tool_choice": "none", "include_reasoning": True, "echo": False,
    "add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False,
    "documents": None, "chat_template": None, "chat_template_kwargs": None, "media_io_kwargs": None,
    "mm_processor_kwargs": None, "return_prompt_text": None,
}  # fmt: skip
SGLANG = {
    "return_hidden_states": False, "return_routed_experts": False, "routed_experts_start_len": 0,
    "return_cached_tokens_details": False, "return_spec_tokens_details": False,
    "return_token_ids": False, "top_k": -1, "min_p": 0.0, "min_tokens": 0, "json_schema": None,
    "regex": None, "ebnf": None, "repetition_penalty": 1.0, "stop_token_ids": None,
    "stop_regex": None, "no_stop_trim": False, "ignore_eos": False, "skip_special_tokens": True,
    "lora_path": None, "session_id": None, "session_params": None, "custom_params": None,
    "custom_logit_processor": None, "watermark": None, "images_config": None,
    "mm_processor_kwargs": None, "data_parallel_rank": None, "rid": None, "extra_key": None,
    "cache_salt": None, "priority": None, "custom_labels": None,
}  # fmt: skip
SGLANG_CHAT = {
    "tool_choice": "auto", "parallel_tool_calls": True, "return_prompt_token_ids": False,
    "return_meta_info": False, "return_input_ids_in_sglext": False,
    "return_output_ids_in_sglext": False, "return_sampling_mask": False,
    "sampling_logprobs_mode": None, "return_flat_raw_output_top_logprobs": False,
    "return_flat_raw_top_logprobs_b64": True, "reasoning_effort": None, "thinking": None,
    "task": None, "continue_final_message": False, "separate_reasoning": True,
    "stream_reasoning": True, "chat_template_kwargs": None, "max_dynamic_patch": None,
    "min_dynamic_patch": None, "use_audio_in_video": False, "video_config": None, "input_ids": None,
}  # fmt: skip
KNOWN = {
    COMPLETIONS: [
        OPENAI | OPENAI_COMPLETIONS, OPENAI | VLLM | VLLM_COMPLETIONS,
        OPENAI | SGLANG,
    ],
    CHAT: [OPENAI | OPENAI_CHAT, OPENAI | VLLM | VLLM_CHAT, OPENAI | SGLANG | SGLANG_CHAT],
}  # fmt: skip
NEUTRAL = [
    (path, name, marks[0])
    for path, table in MODELS.items()
    for name, field in table.model_fields.items()
    if (marks := [mark for mark in field.metadata if isinstance(mark, Neutral)])
]


@pytest.fixture(params=[COMPLETIONS, CHAT])
def path(request):
    return request.param


def test_every_known_field_is_known(path):
    unknown = {name for fields in KNOWN[path] for name in fields} - {*MODELS[path].model_fields}
    assert unknown == set()


def test_null_and_each_servers_default_change_nothing(make_client, path):
    """One at a time, and all of a server's together."""
    engine = FakeEngine()
    client, needed = make_client(engine), NEEDED[path]
    fields = [(name, value) for known in KNOWN[path] for name, value in known.items()]
    bodies = [{name: value} for name, value in fields] + [{name: None} for name, _ in fields]
    for body in [{}, *bodies, *KNOWN[path]]:
        response = client.post(path, {**body, **needed})
        assert response.status_code == 200, (body, response.text)
        answer = response.json()
        assert set(answer["choices"][0]) <= {
            "index", "text", "message", "logprobs", "finish_reason", "digest", "seed",
            "deterministic",
        }  # fmt: skip
    assert len(engine.seen) == 1 + len(bodies) + len(KNOWN[path])
    assert {repr(params) for params in engine.seen} == {repr(engine.seen[0])}
    assert {repr(prompt) for prompt in engine.prompts} == {repr(engine.prompts[0])}


VALUES = [True, False, 0, 1, -1, 7, 1.0, 0.5, "", "none", "x", [], ["x"], [1], {}, {"a": 1}]


@pytest.mark.parametrize(("path", "name", "neutral"), NEUTRAL)
def test_any_other_value_of_what_is_not_built_is_refused_by_name(client, path, name, neutral):
    same = {json.dumps(value) for value in neutral.values}
    same |= {
        json.dumps(float(v)) for v in neutral.values if isinstance(v, int) and v is not bool(v)
    }
    same |= {json.dumps(int(v)) for v in neutral.values if type(v) is float}
    for value in [*neutral.values, None]:
        assert client.post(path, {**NEEDED[path], name: value}).status_code == 200
    refused = [value for value in VALUES if json.dumps(value) not in same]
    assert refused
    for value in refused:
        response = client.post(path, {**NEEDED[path], name: value})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == name
        assert f"{name}: got " in error["message"]
        assert "not supported yet, expected " in error["message"]


def test_the_table_is_all_there_is():
    """The negative control: a field of the tables is neutral, or ignored and said to be."""
    tables = NeutralFields.model_fields | NeutralChatFields.model_fields
    named = {name for _, name, _ in NEUTRAL}
    others = {name for name in tables if name not in named}
    assert others == {"user", "metadata", "safety_identifier", "prompt_cache_key", "session_id"}
    assert all(tables[name].description == "ignored" for name in others)
    known = {name for fields in (*KNOWN[COMPLETIONS], *KNOWN[CHAT]) for name in fields}
    assert set(tables) <= known
