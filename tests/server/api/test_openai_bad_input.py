from __future__ import annotations

import json
import time

import pytest
from fake_engine import FakeEngine

TOO_LONG = "This model's maximum context length is 256 tokens. However, "

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = '"messages": [{"role": "user", "content": "x"}]'
BOTH = [
    ('"temperature": NaN', "temperature", "expected a finite number"),
    ('"temperature": "1"', "temperature", 'got "1", expected a number'),
    ('"temperature": -1', "temperature", "got -1.0, expected [0.0, 100.0]"),
    ('"top_p": 1.1', "top_p", "expected [0.0, 1.0]"),
    ('"top_k": -2', "top_k", "got -2, expected an integer in 0.."),
    ('"n": 0', "n", "got 0, expected an integer in 1..128"),
    ('"n": 129', "n", "got 129, expected an integer in 1..128"),
    ('"n": 1.0', "n", "got 1.0, expected an integer"),
    ('"seed": -2', "seed", "got -2, expected an integer"),
    ('"stop": [""]', "stop", "expected strings of 1 to"),
    ('"stop": {}', "stop", "got an object, expected a string or a list of strings"),
    ('"logit_bias": {"256": 1}', "logit_bias", "token id 256, expected 0..255"),
    ('"logit_bias": {"a": 1}', "logit_bias.a", 'got "a", expected a token id'),
    ('"presence_penalty": 3', "presence_penalty", "expected [-2.0, 2.0]"),
    ('"stream": 1', "stream", "got 1, expected true or false"),
    ('"stream_options": {"include_usage": true}', "stream_options", "expected stream = true"),
    ('"stream_options": true', "stream_options", "got true, expected an object"),
    (
        '"stream": true, "stream_options": {"include_usag": true}',
        "stream_options.include_usag",
        "unknown field, did you mean include_usage?",
    ),
    (
        '"stream": true, "stream_options": {"include_usage": 1}',
        "stream_options.include_usage",
        "got 1, expected true or false",
    ),
    ('"max_tokens": "5"', "max_tokens", 'got "5", expected an integer'),
    ('"max_tokens": -1', "max_tokens", "got -1, expected an integer in 1.."),
    ('"max_tokens": 1000', "max_tokens", "got 1000 after a prompt of"),
    ('"min_tokens": 1000', "min_tokens", "got 1000, at most max_tokens"),
    ('"model": 5', "model", "got 5, expected a string"),
    ('"metadata": []', "metadata", "got a list, expected an object"),
    ('"store": true', "store", "got true, not supported yet, expected false or null"),
    ('"response_format": {"type": "xml"}', "response_format", 'got an object, expected {"type": '),
    ('"prompt_logprobs": 21', "prompt_logprobs", "got 21, expected an integer in 0..20"),
    ('"prompt_logprobs": -1', "prompt_logprobs", "got -1, expected an integer in 0..20"),
    ('"prompt_logprobs": 1, "stream": true', "prompt_logprobs", "expected stream = false"),
    ('"truncate_prompt_tokens": 0', "truncate_prompt_tokens", "got 0, expected -1 or an integer"),
    ('"truncate_prompt_tokens": -2', "truncate_prompt_tokens", "got -2, expected -1 or an"),
    ('"truncation_side": "both"', "truncation_side", "expected 'left' or 'right'"),
    ('"cache_salt": ""', "cache_salt", "expected 1 to 128 characters"),
    ('"request_id": "' + "x" * 129 + '"', "request_id", "expected 1 to 128 characters"),
    ('"use_beam_search": true', "use_beam_search", "got true, not supported yet"),
    ('"max_token": 5', "max_token", "unknown field, did you mean max_tokens?"),
    ('"guided_json": 3', "guided_json", "got 3, expected a JSON schema"),
    ('"guided_json": {}, "regex": "a"', "regex", "got it beside guided_json, expected one of them"),
    ('"guided_choice": []', "guided_choice", "got a list, expected a list of 1 to 1024 strings"),
    (
        '"structured_outputs": {}',
        "structured_outputs",
        "expected an object with one of json",
    ),
    ('"ebnf": 1', "ebnf", "got 1, expected a string"),
]
ONLY_COMPLETIONS = [
    ("{}", "prompt", "missing, expected a string, a list of strings, of token ids, or of lists"),
    ('{"prompt": null}', "prompt", "missing, expected a string"),
    ('{"prompt": ""}', "prompt", "got an empty prompt, expected text"),
    ('{"prompt": []}', "prompt", "got 0 prompts, expected 1 to 32"),
    ('{"prompt": [[]]}', "prompt", "got an empty prompt, expected token ids"),
    ('{"prompt": [5, ""]}', "prompt", "expected a string, a list of strings, of token ids"),
    ('{"prompt": [[5], 5]}', "prompt", "expected a string, a list of strings, of token ids"),
    ('{"prompt": [true]}', "prompt", "expected a string, a list of strings, of token ids"),
    ('{"prompt": {"a": 1}}', "prompt", "got an object, expected a string"),
    ('{"prompt": [-1]}', "prompt", "got token id -1, expected 0..255"),
    ('{"prompt": [[1], [256]]}', "prompt", "got token id 256, expected 0..255"),
    (json.dumps({"prompt": ["a"] * 33}), "prompt", "got 33 prompts, expected 1 to 32"),
    ('{"prompt": ["a", "b"], "n": 65}', "n", "got 65 answers for each of 2 prompts"),
    ('{"prompt": "a", "best_of": 3, "n": 2}', "best_of", "expected n = 2 or null"),
    ('{"prompt": "a", "best_of": "2"}', "best_of", 'got "2", expected an integer'),
    ('{"prompt": "a", "max_tokens": 0}', "max_tokens", "got 0 without echo"),
    ('{"prompt": "a", "logprobs": 21}', "logprobs", "got 21, expected an integer in 0..20"),
    ('{"prompt": "a", "logprobs": true}', "logprobs", "got true, expected an integer"),
    ('{"prompt": "a", "echo": "yes"}', "echo", 'got "yes", expected true or false'),
    ('{"prompt": "a", "suffix": "b"}', "suffix", 'got "b", not supported yet'),
]
ONLY_CHAT = [
    ("{}", "messages", "missing, expected at least one message"),
    ('{"messages": null}', "messages", "missing, expected at least one message"),
    ('{"messages": []}', "messages", "got an empty list, expected at least one message"),
    ('{"messages": "hi"}', "messages", 'got "hi", expected a list'),
    ('{"messages": ["hi"]}', "messages.0", 'got "hi", expected an object'),
    ('{"messages": [{"content": "x"}]}', "messages.0.role", "missing"),
    ('{"messages": [{"role": "user"}]}', "messages.0.content", "got null, expected a string"),
    (
        '{"messages": [{"role": "User", "content": "x"}]}',
        "messages.0.role",
        "got \"User\", expected 'system', 'developer', 'user', 'assistant' or 'tool'",
    ),
    (
        '{"messages": [{"role": "user", "content": null}]}',
        "messages.0.content",
        "got null, expected a string or a list of text parts",
    ),
    (
        '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}',
        "messages.0.content",
        'part 0 is "image_url", only "text" is supported',
    ),
    (
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}',
        "messages.0.content",
        "expected part 0 to be",
    ),
    (
        '{"messages": [{"role": "user", "content": ["x"]}]}',
        "messages.0.content",
        'part 0 is "x", only "text" is supported',
    ),
    (
        '{"messages": [{"role": "user", "content": "x"}, {"role": "user", "contnt": "x"}]}',
        "messages.1.contnt",
        "unknown field, did you mean content?",
    ),
    (
        '{"messages": [{"role": "user", "content": "x", "nam": "x"}]}',
        "messages.0.nam",
        "unknown field, did you mean name?",
    ),
    (
        '{"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}',
        "messages.0.tool_calls.0.id",
        "missing",
    ),
    (
        '{"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}',
        "messages.0.tool_call_id",
        'got "1", expected the id of a call before it',
    ),
    (f'{{{HI}, "max_completion_tokens": 0}}', "max_completion_tokens", "got 0, expected an int"),
    (f'{{{HI}, "max_completion_tokens": 999}}', "max_completion_tokens", "got 999 after a prompt"),
    (
        f'{{{HI}, "max_tokens": 2, "max_completion_tokens": 3}}',
        "max_tokens",
        "got 2 beside max_completion_tokens = 3, expected one of them",
    ),
    (f'{{{HI}, "logprobs": 1}}', "logprobs", "got 1, expected true or false"),
    (f'{{{HI}, "top_logprobs": 1}}', "top_logprobs", "expected logprobs = true"),
    (f'{{{HI}, "logprobs": true, "top_logprobs": 21}}', "top_logprobs", "got 21, expected an int"),
    (f'{{{HI}, "tools": [{{}}]}}', "tools.0.type", "missing"),
    (f'{{{HI}, "tool_choice": "required"}}', "tool_choice", 'got "required" without tools'),
    (f'{{{HI}, "functions": [{{}}]}}', "functions", "got a list, not supported yet"),
    (f'{{{HI}, "function_call": {{}}}}', "function_call", "got an object, not supported yet"),
    (f'{{{HI}, "modalities": ["audio"]}}', "modalities", "got a list, not supported yet"),
    (
        f'{{{HI}, "reasoning_effort": "lo"}}',
        "reasoning_effort",
        "expected 'none', 'minimal', 'low'",
    ),
    (
        f'{{{HI}, "add_generation_prompt": true, "continue_final_message": true}}',
        "continue_final_message",
        "got true with add_generation_prompt = true, expected one",
    ),
    (
        f'{{{HI}, "continue_final_message": true, "chat_template_kwargs": {{"messages": "x"}}}}',
        "chat_template_kwargs.messages",
        "expected the name of a template variable",
    ),
    (
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "mark": 1}]}]}',
        "messages.0.content",
        "expected part 0 to be",
    ),
    (
        f'{{{HI}, "chat_template": "{{{{ 1 }}}}"}}',
        "chat_template",
        "not supported yet, expected null",
    ),
    (
        f'{{{HI}, "chat_template_kwargs": {{"chat_template": "x"}}}}',
        "chat_template_kwargs.chat_template",
        "expected the name of a template variable",
    ),
    (
        f'{{{HI}, "chat_template_kwargs": {{"messages": "x"}}}}',
        "chat_template_kwargs.messages",
        "expected the name of a template variable",
    ),
    (
        f'{{{HI}, "chat_template_kwargs": {{"bot": 5}}}}',
        "messages",
        "the model's chat template refuses them",
    ),
    (
        f'{{{HI}, "chat_template_kwargs": {{"x": [1]}}}}',
        "chat_template_kwargs",
        "expected an object of at most 64 strings, numbers and booleans",
    ),
    (
        json.dumps({"messages": [], "chat_template_kwargs": dict.fromkeys(map(str, range(65)), 1)}),
        "chat_template_kwargs",
        "expected an object of at most 64",
    ),
    (
        json.dumps({"messages": [{"role": "user", "content": "x" * 300}]}),
        "messages",
        "tokens, at most 255 leave room",
    ),
]
CASES = [
    *((COMPLETIONS, f'{{"prompt": "x", {rest}}}', *expected) for rest, *expected in BOTH),
    *((CHAT, f"{{{HI}, {rest}}}", *expected) for rest, *expected in BOTH),
    *((COMPLETIONS, *case) for case in ONLY_COMPLETIONS),
    *((CHAT, *case) for case in ONLY_CHAT),
]


@pytest.mark.parametrize(("path", "body", "param", "message"), CASES)
def test_bad_body_is_a_400_that_names_the_field(make_client, path, body, param, message):
    engine = FakeEngine()
    response = make_client(engine).post(path, body.encode())
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"].removeprefix(TOO_LONG).startswith(f"{param}: ")
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 250
    assert engine.prompts == []


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_object_is_a_400(client, path, body):
    response = client.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("body: ")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_too_long_a_prompt_has_openais_code(client, path):
    text = "x" * 256
    messages = [{"role": "user", "content": text}]
    body = {"prompt": text} if path == COMPLETIONS else {"messages": messages}
    for stream in (False, True):
        response = client.post(path, {**body, "stream": stream})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_a_flood_of_mistakes_is_one_complaint(client, path):
    field = "prompt" if path == COMPLETIONS else "messages"
    unknown = ",".join(f'"f{i}": 1' for i in range(200_000))
    for body, param in [
        *((f'{{"{field}": [{item * 200_000}5]}}', field) for item in ("true,", "[true],", "{},")),
        (f"{{{unknown}}}", "f0"),
        (f'{{"stream_options": {{{unknown}}}}}', "stream_options.f0"),
        (f'{{"logit_bias": {{{unknown}}}}}', "logit_bias"),
    ]:
        start = time.process_time()
        json.loads(body)
        parsed = time.process_time()
        response = client.post(path, body.encode())
        taken = time.process_time() - parsed
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith(param)
        # Looking at all of it costs no more than parsing it (8 times for a list of `true`, which
        # parses fast). Pydantic's complaint a mistake costs 4 times parsing, and 150 for that list.
        assert taken < (40 if "[true" in body[:20] else 3) * (parsed - start)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_full_queue_is_a_429_with_retry_after(make_client, path, stream):
    body = (
        {"prompt": "a"}
        if path == COMPLETIONS
        else {"messages": json.loads(f"{{{HI}}}")["messages"]}
    )
    response = make_client(FakeEngine(queue_full=True)).post(path, {**body, "stream": stream})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


@pytest.mark.parametrize("n", [1, 2])
def test_failure_in_mid_stream_is_an_event_before_done(make_client, n):
    engine = FakeEngine(fail_after=2)
    response = make_client(engine).post(COMPLETIONS, {"prompt": "a", "n": n, "stream": True})
    *_, failure, done, _ = response.text.split("\n\n")
    assert json.loads(failure.removeprefix("data: "))["error"]["code"] == "generation_failed"
    assert done == "data: [DONE]"
    assert engine.running == {}
