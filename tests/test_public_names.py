"""The names users rely on: imports, settings and their defaults, flags, routes, fields, errors.

A list here may grow. A name that goes from one, or a default that changes, breaks somebody.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields

import pytest

import detinfer
from detinfer import LLM, SamplingParams, SolveParams, Solver, cli, errors
from detinfer.config import EngineConfig, ServerConfig
from detinfer.engine.async_engine import AsyncEngine
from detinfer.engine.embedding import Embedding
from detinfer.engine.outputs import Completion, RequestOutput
from detinfer.engine.scoring import Score
from detinfer.recursive.result import Solution, TraceStep
from detinfer.server.app import create_app

DEFAULTS = {
    SamplingParams: {
        "max_tokens": 128,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": (),
        "n": 1,
        "seed": None,
        "stop": (),
        "stop_token_ids": (),
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "ignore_eos": False,
        "min_tokens": 0,
        "logprobs": None,
        "prompt_logprobs": None,
        "deterministic": True,
        "checksums": False,
        "json_schema": None,
        "regex": None,
        "grammar": None,
    },
    EngineConfig: {
        "model": None,
        "device": "auto",
        "numerics": "auto",
        "plan": "auto",
        "dtype": "auto",
        "weights": "auto",
        "quantize": None,
        "max_model_len": None,
        "max_num_seqs": None,
        "max_num_batched_tokens": None,
        "kv_cache_memory": None,
        "kv_cache_dtype": "auto",
        "prefix_caching": True,
        "speculation": True,
        "threads": None,
        "default_deterministic": True,
        "allow_fast": True,
    },
    SolveParams: {
        "max_steps": 16,
        "halt": "verified",
        "halt_threshold": 0.0,
        "stable_steps": 2,
        "rollouts": 1,
        "noise": 0.0,
        "seed": 0,
        "trace": False,
    },
    ServerConfig: {
        "host": "127.0.0.1",
        "port": 8000,
        "api_keys": (),
        "share_prefix_cache": False,
        "cors_origins": (),
        "served_model_name": None,
        "max_queue_size": 4096,
        "request_timeout": 20.0,
        "generation_timeout": 600.0,
        "shutdown_timeout": 30.0,
        "exit_on_engine_death": True,
        "receipt_key": None,
        "tool_call_parser": "auto",
        "reasoning_parser": "none",
        "metrics_prefix": "detinfer",
        "access_log": True,
        "log_format": "text",
        "log_level": "info",
    },
}

ANSWERS = {
    Completion: "prompt_token_ids deterministic system_fingerprint text token_ids logprobs "
    "prompt_logprobs finish_reason digest seed error checksums",
    RequestOutput: "request_id text token_ids logprobs finish_reason digest seed deterministic "
    "prompt_tokens completion_tokens cached_tokens queue_time error prompt_logprobs stop_reason "
    "checksums embedding",
    Embedding: "prompt_token_ids deterministic system_fingerprint vector finish_reason digest "
    "error",
    Score: "score digest deterministic system_fingerprint error",
    Solution: "status puzzle grid valid clues_kept steps halted_by q q_hex digest rollout trace "
    "reason",
    TraceStep: "step grid changed violations q q_hex chain rollout",
}

METHODS = {
    LLM: "chat generate embed score",
    Solver: "solve stream",
    AsyncEngine: "start generate stats ended shutdown pid",
}

ENGINE_FLAGS = (
    "MODEL -m --model --device --numerics --plan --dtype --weights --quantize --max-model-len "
    "--max-num-seqs --max-num-batched-tokens --kv-cache-memory --kv-cache-dtype --threads "
    "--default-deterministic --no-default-deterministic --fast-mode --no-fast-mode "
    "--prefix-caching --no-prefix-caching --speculation --no-speculation"
)
COMMANDS = {
    "serve": f"{ENGINE_FLAGS} --solver --host --port --api-key --api-key-file --share-prefix-cache "
    "--no-share-prefix-cache --cors-origin --served-model-name --max-queue-size --request-timeout "
    "--generation-timeout --shutdown-timeout --exit-on-engine-death --no-exit-on-engine-death "
    "--receipt-key --tool-call-parser --reasoning-parser --metrics-prefix --access-log "
    "--no-access-log --log-format --log-level",
    "generate": f"{ENGINE_FLAGS} -p --prompt --chat --no-chat --max-tokens --temperature --seed "
    "--json --receipt --receipt-key",
    "verify": f"RECEIPT {ENGINE_FLAGS} --url --signed-by --json",
    "chat": f"{ENGINE_FLAGS} --system --max-tokens --temperature --seed",
    "check": f"{ENGINE_FLAGS} --solver --url --timeout --compare --runs -p --prompt --max-tokens "
    "--mode --concurrency --fast-neighbours --families --report --repro --golden --update "
    "--assert --seed",
    "solve": "PUZZLE -m --model --max-steps --halt --halt-threshold --stable-steps --rollouts "
    "--noise --seed --trace --json --fast --threads",
    "doctor": "MODEL -m --model --json --compile-audit --full",
    "pull": "MODEL -m --model --weights --quantize",
    "bench": "NAME OPTIONS",
}

ROUTES = {
    "get": "/health /ready /version /server_info /get_server_info /v1/models /v1/models/{model_id} "
    "/model_info /get_model_info /health_generate /info /tokenizer_info /metrics",
    "post": "/ /generate /generate_stream /v1/completions /v1/chat/completions /v1/embeddings "
    "/score /v1/score /v1/responses /flush_cache /tokenize /detokenize /check /verify /v1/solve",
}

OPENAI_FIELDS = (
    "model temperature top_p n stop seed logit_bias presence_penalty frequency_penalty stream "
    "stream_options deterministic receipt top_k min_p repetition_penalty min_tokens ignore_eos "
    "stop_token_ids include_stop_str_in_output skip_special_tokens add_special_tokens "
    "truncate_prompt_tokens truncation_side prompt_logprobs return_token_ids cache_salt "
    "request_id max_tokens logprobs"
)
SCHEMAS = {
    "GenerateRequest": "temperature top_p top_k min_p stop stop_token_ids ignore_eos "
    "repetition_penalty presence_penalty frequency_penalty logit_bias n best_of "
    "skip_special_tokens spaces_between_special_tokens prompt text inputs input_ids max_tokens "
    "seed min_tokens logprobs deterministic receipt include_stop_str_in_output stream "
    "response_format use_beam_search",
    "GenerateResponse": "id text output_ids finish_reason deterministic seed digest "
    "system_fingerprint usage logprobs receipt",
    "Usage": "prompt_tokens completion_tokens cached_tokens",
    "Logprob": "token_id logprob top",
    "ErrorDetail": "message type param code",
    "SolveRequest": "model grid max_steps halt halt_threshold stable_steps rollouts noise seed "
    "trace stream deterministic",
    "SolveResponse": "id object created model status solution grid puzzle valid clues_kept steps "
    "halted_by rollout q reason trace deterministic digest system_fingerprint usage",
    "TracedStep": "step grid changed violations q chain rollout",
    "SolverCard": "id object created owned_by root parent task cells parameters accuracy "
    "halting_step system_fingerprint",
    "Receipt": "form model system_fingerprint fingerprint prompt parameters answer sha256 "
    "signature",
    "ReceiptVerdict": "match findings tokens signed_by seconds",
    "ReceiptFinding": "part message token fingerprint_parts",
    "CheckRequest": "prompt runs max_tokens modes seed",
    "ResponsesRequest": "model input instructions max_output_tokens text reasoning include "
    "top_logprobs stream store metadata temperature top_p seed deterministic receipt",
    "ResponsesResponse": "id object created_at completed_at status error incomplete_details model "
    "output usage metadata store digest seed deterministic system_fingerprint receipt",
    "EmbeddingRequest": "model input encoding_format dimensions user deterministic pooling "
    "normalize",
    "EmbeddingResponse": "object data model usage system_fingerprint deterministic",
    "EmbeddingItem": "object index embedding digest",
    "EmbeddingUsage": "prompt_tokens total_tokens",
    "ScoreRequest": "model text_1 text_2 queries documents items data_1 data_2 user deterministic "
    "pooling request_id",
    "ScoreResponse": "id object created data model usage system_fingerprint deterministic",
    "ScoreItem": "object index score digest",
    "CompletionRequest": f"{OPENAI_FIELDS} prompt echo best_of",
    "ChatCompletionRequest": f"{OPENAI_FIELDS} messages max_completion_tokens top_logprobs "
    "chat_template_kwargs add_generation_prompt continue_final_message tools tool_choice "
    "parallel_tool_calls include_reasoning separate_reasoning",
    "Tool": "type function",
    "FunctionDefinition": "name description parameters strict",
    "ChatMessage": "role content reasoning_content reasoning name tool_calls tool_call_id",
    "AssistantMessage": "role content refusal tool_calls reasoning_content reasoning",
    "ToolCall": "id type function",
    "CompletionResponse": "id created model system_fingerprint usage object choices",
    "CompletionResponseChoice": "index finish_reason digest seed deterministic token_ids receipt "
    "prompt_token_ids prompt_logprobs text logprobs",
    "ChatCompletionResponse": "id created model system_fingerprint usage prompt_token_ids "
    "prompt_logprobs object choices",
    "ChatResponseChoice": "index finish_reason digest seed deterministic token_ids receipt message "
    "logprobs",
    "OpenAIUsage": "prompt_tokens completion_tokens total_tokens prompt_tokens_details",
    "TokenizeRequest": "model prompt messages add_special_tokens add_generation_prompt "
    "chat_template_kwargs return_token_strs continue_final_message chat_template tools "
    "media_io_kwargs mm_processor_kwargs",
    "TokenizeResponse": "tokens count max_model_len token_strs",
    "DetokenizeRequest": "model tokens",
    "DetokenizeResponse": "prompt",
}

ERRORS = {
    "DetinferError": (Exception,),
    "ConfigError": (errors.DetinferError, ValueError),
    "ModelLoadError": (errors.DetinferError,),
    "UnsupportedModelError": (errors.DetinferError,),
    "RequestError": (errors.DetinferError, ValueError),
    "QueueFullError": (errors.DetinferError,),
    "GenerationTimeoutError": (errors.DetinferError,),
    "EngineDeadError": (errors.DetinferError,),
}


def test_the_package_exports():
    assert detinfer.__all__ == ["LLM", "SamplingParams", "SolveParams", "Solver", "__version__"]


@pytest.mark.parametrize("config", DEFAULTS, ids=lambda config: config.__name__)
def test_settings_and_their_defaults(config):
    assert list(asdict(config()).items()) == list(DEFAULTS[config].items())


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.__name__)
def test_fields_of_answers(answer):
    assert [field.name for field in fields(answer)] == ANSWERS[answer].split()


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_methods(kind):
    assert {*dir(kind)} >= {*METHODS[kind].split()}


def test_commands_and_flags():
    commands = next(
        action
        for action in cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    found = {
        name: [word for flag in parser._actions for word in flag.option_strings or [flag.metavar]]
        for name, parser in commands.choices.items()
    }
    assert {name: {*words} - {"-h", "--help"} for name, words in found.items()} == {
        name: {*words.split()} for name, words in COMMANDS.items()
    }


@pytest.fixture(scope="module")
def description():
    return create_app(None, ServerConfig()).openapi()


def test_routes(description):
    found = {(method, path) for path, methods in description["paths"].items() for method in methods}
    assert found == {(method, path) for method in ROUTES for path in ROUTES[method].split()}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_fields_of_bodies_and_answers_over_http(description, schema):
    found = description["components"]["schemas"][schema]["properties"]
    assert {*found} >= {*SCHEMAS[schema].split()}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    assert getattr(errors, name).__bases__ == ERRORS[name]
