"""``POST /v1/responses``: OpenAI's objects and events around the chat route's answers."""

from __future__ import annotations

import json

import pytest
from fake_engine import INFO, FakeEngine, byte_tokenizer
from streams import typed_events, unnamed
from tool_chats import RESPONSES_TOOL as TOOL

from detinfer.params import constraint_of

RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_output_tokens": 2}
ORDER = [
    "response.created", "response.in_progress", "response.output_item.added",
    "response.content_part.added", "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", "response.output_item.done",
]  # fmt: skip


def rendered(*messages: tuple[str, str]) -> list[int]:
    texts = [f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages]
    return byte_tokenizer().encode("".join(texts) + "<|im_start|>assistant\n")


def test_answer_is_openais_object(client):
    answer = client.post(RESPONSES, {"input": "hi", **GREEDY})
    body = answer.json()
    assert answer.headers["x-detinfer-digest"] == body["digest"]
    assert answer.headers["x-detinfer-deterministic"] == "true"
    assert body["id"].startswith("resp_")
    assert body["created_at"] > 1_600_000_000
    prompt = len(rendered(("user", "hi")))
    part = {"type": "output_text", "text": "no", "annotations": [], "logprobs": []}
    assert unnamed(body) == {
        "object": "response",
        "status": "incomplete",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "model": "fake-model",
        "output": [
            {"type": "message", "role": "assistant", "status": "incomplete", "content": [part]}
        ],
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + 2,
        },
        "instructions": None,
        "max_output_tokens": 2,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_logprobs": 0,
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None, "summary": None},
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "metadata": {},
        "user": None,
        "service_tier": "default",
        "truncation": "disabled",
        "background": False,
        "previous_response_id": None,
        "store": False,
        "deterministic": True,
        "seed": None,
        "system_fingerprint": INFO.system_fingerprint,
    }


def test_it_is_the_chat_routes_answer(make_client):
    client = make_client(FakeEngine(script=b"Paris.\x00"))
    ask = {"temperature": 0.5, "seed": 3, "top_p": 0.9}
    chat = client.post(CHAT, {"messages": [{"role": "user", "content": "hi"}], **ask}).json()
    body = client.post(RESPONSES, {"input": "hi", **ask}).json()
    [choice] = chat["choices"]
    assert body["output"][0]["content"][0]["text"] == choice["message"]["content"] == "Paris."
    assert (body["digest"], body["seed"]) == (choice["digest"], choice["seed"])
    assert (body["status"], body["incomplete_details"]) == ("completed", None)
    assert body["completed_at"] >= body["created_at"]
    assert body["output"][0]["status"] == "completed"


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ({"input": "hi"}, [("user", "hi")]),
        ({"input": "hi", "instructions": "Be brief."}, [("system", "Be brief."), ("user", "hi")]),
        (
            {
                "input": [
                    {"role": "developer", "content": "Be brief."},
                    {"type": "message", "role": "user", "content": [
                        {"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
                    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                     "phase": None, "content": [{"type": "output_text", "text": "c",
                                                 "annotations": [], "logprobs": None}]},
                    {"role": "user", "content": "d"},
                ]
            },
            [("system", "Be brief."), ("user", "a\nb"), ("assistant", "c"), ("user", "d")],
        ),
    ],
)  # fmt: skip
def test_input_becomes_a_prompt_through_the_models_template(make_client, asked, messages):
    engine = FakeEngine()
    assert make_client(engine).post(RESPONSES, asked | GREEDY).status_code == 200
    assert engine.prompts == [rendered(*messages)]


def test_an_output_is_an_input_of_the_next_turn(make_client):
    engine = FakeEngine(script=b"Paris.\x00")
    client = make_client(engine)
    first = client.post(RESPONSES, {"input": "hi", **GREEDY, "max_output_tokens": 50}).json()
    history = [{"role": "user", "content": "hi"}, *first["output"]]
    answer = client.post(RESPONSES, {"input": [*history, {"role": "user", "content": "so?"}]})
    assert answer.status_code == 200, answer.text
    assert engine.prompts[1] == rendered(("user", "hi"), ("assistant", "Paris."), ("user", "so?"))


@pytest.mark.parametrize("end", [b"\x00", b""])
def test_a_stream_has_openais_events_in_order_and_ends_with_the_whole_answer(make_client, end):
    client = make_client(FakeEngine(script="Grüße, 🙂!".encode() + end))
    ask = {"input": "hi", "temperature": 0, "max_output_tokens": 15 if end else 14}
    whole = client.post(RESPONSES, ask).json()
    answer = client.post(RESPONSES, {**ask, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = typed_events(answer.text)
    last = "response.completed" if end else "response.incomplete"
    kinds = [one["type"] for one in found]
    assert list(dict.fromkeys(kinds)) == [*ORDER, last]
    assert kinds.count("response.output_text.delta") == len(kinds) - 8 > 3
    created, working, added, part, *deltas, text, part_done, done, final = found
    assert created["response"]["status"] == working["response"]["status"] == "in_progress"
    assert (created["response"]["output"], created["response"]["usage"]) == ([], None)
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert part["part"]["text"] == ""
    assert "".join(one["delta"] for one in deltas) == text["text"] == "Grüße, 🙂!"
    assert part_done["part"] == done["item"]["content"][0] == final["response"]["output"][0][
        "content"][0]  # fmt: skip
    places = {
        (one["item_id"], one["output_index"], one["content_index"])
        for one in (part, *deltas, text, part_done)
    }
    assert places == {(added["item"]["id"], 0, 0)}
    assert unnamed(final["response"]) == unnamed(whole)
    assert final["response"]["digest"] == whole["digest"]
    assert final["response"]["id"] == created["response"]["id"] != whole["id"]


def test_an_answer_of_no_text_is_a_message_of_none(make_client):
    client = make_client(FakeEngine(script=b"\x00"))
    ask = {"input": "hi", "temperature": 0}
    whole = client.post(RESPONSES, ask).json()
    assert [part["text"] for part in whole["output"][0]["content"]] == [""]
    found = typed_events(client.post(RESPONSES, {**ask, "stream": True}).text)
    expected = [kind for kind in ORDER if "delta" not in kind]
    assert [one["type"] for one in found] == [*expected, "response.completed"]


def test_logprobs_are_told_where_they_are_included(client):
    ask = {"input": "hi", **GREEDY, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = client.post(RESPONSES, ask).json()
    told = whole["output"][0]["content"][0]["logprobs"]
    assert "".join(one["token"] for one in told) == "no"
    assert [len(one["top_logprobs"]) for one in told] == [2, 2]
    assert whole["top_logprobs"] == 2
    found = typed_events(client.post(RESPONSES, {**ask, "stream": True}).text)
    assert [one for event in found for one in event.get("logprobs", [])[:1]][:2] == told


def test_a_failure_after_the_first_event_is_an_event(make_client):
    client = make_client(FakeEngine(fail_after=3))
    found = typed_events(client.post(RESPONSES, {"input": "hi", "stream": True}).text)
    assert found[-1]["type"] == "response.failed"
    failed = found[-1]["response"]
    assert (failed["status"], failed["usage"]) == ("failed", None)
    assert failed["error"]["code"] == "server_error"
    assert failed["error"]["message"]
    early = make_client(FakeEngine(fail_after=0)).post(RESPONSES, {"input": "hi", "stream": True})
    assert early.status_code == 500


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"format": {"type": "text"}, "verbosity": "medium"}, None),
        ({"format": {"type": "json_object"}}, {"type": "object"}),
        ({"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, SCHEMA),
        (
            {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
            SCHEMA,
        ),
    ],
)
def test_text_format_constrains_the_answer(make_client, text, expected):
    engine = FakeEngine()
    answer = make_client(engine).post(RESPONSES, {"input": "hi", "text": text, **GREEDY})
    assert answer.json()["text"]["format"] == text["format"]
    found = constraint_of(engine.seen[0])
    assert (found and json.loads(found[1])) == expected


def test_fields_that_change_nothing_are_taken(client):
    neutral = {
        "store": True, "include": ["reasoning.encrypted_content"], "metadata": {"a": "b"},
        "user": "me", "safety_identifier": "me", "prompt_cache_key": "k", "service_tier": "auto",
        "truncation": "disabled", "background": False, "tools": [], "tool_choice": "auto",
        "parallel_tool_calls": True, "previous_response_id": None, "conversation": None,
        "prompt": None, "max_tool_calls": None, "stream_options": {"include_obfuscation": False},
        "access_programs": None, "image": None, "background_options": {}, "moderation": None,
        "prompt_cache_options": {}, "prompt_cache_retention": "24h", "context_management": None,
        "top_logprobs": 0, "logit_bias": None, "include_reasoning": True, "priority": 0,
        "mm_payload": "tensors", "mm_processor_kwargs": None, "media_io_kwargs": None,
        "enable_response_messages": False, "previous_input_messages": None, "session_id": None,
        "structured_outputs": None, "repetition_penalty": None, "stop": [], "stop_token_ids": [],
        "ignore_eos": False, "vllm_xargs": None, "kv_transfer_params": None, "cache_salt": None,
        "ec_transfer_params": None, "chat_template_kwargs": None, "skip_special_tokens": True,
        "include_stop_str_in_output": False, "presence_penalty": 0, "frequency_penalty": 0,
        "watermarking": None, "return_mm_kwargs": None, "request_id": "mine", "top_k": None,
        "reasoning": {"effort": None, "summary": "auto"}, "text": {"verbosity": "medium"},
    }  # fmt: skip
    plain = client.post(RESPONSES, {"input": "hi", **GREEDY}).json()
    answer = client.post(RESPONSES, {"input": "hi", **GREEDY, **neutral})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["output"][0]["content"] == plain["output"][0]["content"]
    assert (body["metadata"], body["store"]) == ({"a": "b"}, False)


def test_reasoning_effort_is_a_variable_of_the_template(make_client):
    engine = FakeEngine(chat_template="{{ reasoning_effort }}{{ messages[0].content }}")
    body = {"input": "hi", "reasoning": {"effort": "low"}, **GREEDY}
    make_client(engine).post(RESPONSES, body)
    assert bytes(engine.prompts[0]) == b"lowhi"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "missing, expected a string or a list of items"),
        ({"input": 5}, "input", "got 5, expected a string or a list of items"),
        ({"input": []}, "input", "expected 1 to 1024 items, got 0"),
        ({"input": [{}] * 1025}, "input", "expected 1 to 1024 items, got 1025"),
        ({"input": ["a"]}, "input", 'item 0 is "a", expected an object'),
        ({"input": [{"role": "robot", "content": "a"}]}, "input", 'item 0 has the role "robot"'),
        ({"input": [{"role": "user"}]}, "input", "item 0 has the content null"),
        (
            {"input": [{"role": "user", "content": "a"}, {"type": "item_reference", "id": "x"}]},
            "input",
            'item 1 is "item_reference", expected one of message, function_call',
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input",
            'item 0 has "input_image" as part 0, expected input_text or output_text',
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "txt": "x"}]}]},
            "input",
            'item 0, part 0 has the unknown field "txt"',
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input",
            "item 0 has no text in part 0",
        ),
        ({"input": [{"role": "user", "content": "a", "x": 1}]}, "input", 'unknown field "x"'),
        ({"input": "x" * 300}, "input", "maximum context length is 256 tokens"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens", "got 0, expected an integer"),
        ({"input": "x", "max_output_tokens": 999}, "max_output_tokens", "got 999 after a prompt"),
        ({"input": "x", "temperature": -1}, "temperature", "expected [0.0, 100.0]"),
        ({"input": "x", "instructions": []}, "instructions", "expected a string"),
        ({"input": "x", "n": 2}, "n", "not supported yet"),
        ({"input": "x", "top_logprobs": 2}, "top_logprobs", "expected it with include"),
        ({"input": "x", "include": ["everything"]}, "include", "expected a list of message."),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format", "got an object"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format", "expected"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": 3}}},
            "text.format",
            "expected a JSON schema",
        ),
        (
            {
                "input": "x",
                "text": {"format": {"type": "json_object"}},
                "structured_outputs": {"regex": "a"},
            },
            "text.format",
            "got it beside structured_outputs, expected one of them",
        ),
        ({"input": "x", "text": {"verbosity": "low"}}, "text.verbosity", "not supported yet"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools.0.name", "missing"),
        (
            {"input": "x", "tools": [{"type": "custom", "name": "a"}]},
            "tools.0.type",
            "got \"custom\", expected 'function'",
        ),
        ({"input": "x", "tools": [TOOL, TOOL]}, "tools.1.name", 'got "get_weather" twice'),
        ({"input": "x", "tools": [{**TOOL, "name": "a b"}]}, "tools.0.name", "1 to 64 characters"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "without tools"),
        (
            {"input": "x", "tools": [TOOL], "tool_choice": {"type": "function", "name": "b"}},
            "tool_choice",
            "expected the name of one of the tools",
        ),
        (
            {"input": "x", "tools": [TOOL], "tool_choice": {"type": "web"}},
            "tool_choice",
            "expected",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "input",
            'got "c", expected the id of a call before it',
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "a", "arguments": "{"}]},
            "input",
            "expected a JSON object, as text",
        ),
        (
            {"input": [{"type": "function_call", "name": "a", "arguments": "{}"}]},
            "input",
            "expected a string",
        ),
        ({"input": "x", "previous_response_id": "r"}, "previous_response_id", "not supported yet"),
        ({"input": "x", "conversation": "c"}, "conversation", "not supported yet"),
        ({"input": "x", "background": True}, "background", "not supported yet"),
        ({"input": "x", "truncation": "auto"}, "truncation", "not supported yet"),
        ({"input": "x", "inputs": "y"}, "inputs", "unknown field, did you mean input?"),
        ({"input": "x", "messages": []}, "messages", "unknown field"),
        ({"input": "x", "receipt": True, "deterministic": False}, "receipt", ""),
    ],
)
def test_bad_input_names_its_field(client, body, param, message):
    answer = client.post(RESPONSES, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message in error["message"]


def test_a_model_without_a_template_says_so(make_client):
    client = make_client(FakeEngine(chat_template=None))
    answer = client.post(RESPONSES, {"input": "hi"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


def test_each_response_has_its_receipt_if_asked(client):
    body = {"input": "hi", **GREEDY, "receipt": True}
    whole = client.post(RESPONSES, body).json()
    assert whole["receipt"]["answer"]["digest"] == whole["digest"]
    *before, final = typed_events(client.post(RESPONSES, {**body, "stream": True}).text)
    assert final["response"]["receipt"] == whole["receipt"]
    assert not any("receipt" in one.get("response", {}) for one in before)
