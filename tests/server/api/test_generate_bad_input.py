from __future__ import annotations

import json

import pytest
from fake_engine import FakeEngine

P = '"prompt": "x"'


def _error(response) -> dict:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in body["error"]["message"]
    assert len(body["error"]["message"]) < 250
    return body["error"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (f'{{{P}, "max_tokens": "5"}}', "max_tokens", 'got "5", expected an integer'),
        (f'{{{P}, "max_tokens": 5.0}}', "max_tokens", "got 5.0, expected an integer"),
        (f'{{{P}, "max_tokens": true}}', "max_tokens", "got true, expected an integer"),
        (f'{{{P}, "max_tokens": 0}}', "max_tokens", "got 0, expected an integer in 1.."),
        (f'{{{P}, "max_tokens": -3}}', "max_tokens", "got -3, expected an integer in 1.."),
        (f'{{{P}, "max_tokens": 1{"0" * 40}}}', "max_tokens", "bits, expected an integer of"),
        (f'{{{P}, "temperature": NaN}}', "temperature", "got NaN, expected a finite number"),
        (f'{{{P}, "temperature": Infinity}}', "temperature", "expected a finite number"),
        (f'{{{P}, "temperature": 1e999}}', "temperature", "expected a finite number"),
        (f'{{{P}, "temperature": true}}', "temperature", "got true, expected a number"),
        (f'{{{P}, "temperature": "hot"}}', "temperature", 'got "hot", expected a number'),
        (f'{{{P}, "temperature": -0.5}}', "temperature", "got -0.5, expected [0.0, 100.0]"),
        (f'{{{P}, "top_p": -0.1}}', "top_p", "expected [0.0, 1.0]"),
        (f'{{{P}, "top_k": -2}}', "top_k", "got -2, expected an integer"),
        (f'{{{P}, "min_p": 1.5}}', "min_p", "got 1.5, expected [0.0, 1.0]"),
        (f'{{{P}, "seed": -1}}', "seed", "got -1, expected an integer"),
        (f'{{{P}, "seed": 18446744073709551616}}', "seed", "at most 64 bits"),
        (f'{{{P}, "logprobs": 21}}', "logprobs", "got 21, expected an integer in 0..20"),
        (f'{{{P}, "min_tokens": 200}}', "min_tokens", "got 200, at most max_tokens = 128"),
        (f'{{{P}, "stop": 5}}', "stop", "got 5, expected a string or a list of strings"),
        (f'{{{P}, "stop": ["a", 5]}}', "stop", "got 5, expected a string or a list of strings"),
        (f'{{{P}, "stop": ""}}', "stop", "expected strings of 1 to"),
        (f'{{{P}, "stop": {json.dumps(["s"] * 17)}}}', "stop", "got 17 strings, at most 16"),
        (f'{{{P}, "stop_token_ids": [1.5]}}', "stop_token_ids.0", "got 1.5, expected an integer"),
        (f'{{{P}, "stream": "yes"}}', "stream", 'got "yes", expected true or false'),
        (f'{{{P}, "ignore_eos": 1}}', "ignore_eos", "got 1, expected true or false"),
        (f'{{{P}, "deterministic": "no"}}', "deterministic", 'got "no", expected true or false'),
        (f'{{{P}, "max_tokns": 5}}', "max_tokns", "unknown field, did you mean max_tokens?"),
        (f'{{{P}, "{"z" * 5000}": 5}}', "z" * 64, "unknown field"),
        (f'{{{P}, "n": 0}}', "n", "got 0, expected an integer in 1..128"),
        (f'{{{P}, "n": 129}}', "n", "got 129, expected an integer in 1..128"),
        (f'{{{P}, "n": true}}', "n", "got true, expected an integer"),
        ('{"prompt": ["x", "y", "z"], "n": 43}', "n", "got 43 answers for each of 3 prompts"),
        (
            '{"text": ["x", "y"], "sampling_params": {"n": 65}}',
            "sampling_params.n",
            "expected at most 128 in all",
        ),
        (f'{{{P}, "best_of": 2}}', "best_of", "got 2, not supported yet, expected 1 or null"),
        (f'{{{P}, "use_beam_search": true}}', "use_beam_search", "got true, not supported"),
        (f'{{{P}, "repetition_penalty": 0}}', "repetition_penalty", "expected [0.01, 100.0]"),
        (f'{{{P}, "repetition_penalty": "1"}}', "repetition_penalty", 'got "1", expected a number'),
        (f'{{{P}, "presence_penalty": 2.5}}', "presence_penalty", "got 2.5, expected [-2.0, 2.0]"),
        (f'{{{P}, "frequency_penalty": -3}}', "frequency_penalty", "expected [-2.0, 2.0]"),
        (f'{{{P}, "frequency_penalty": NaN}}', "frequency_penalty", "expected a finite number"),
        (f'{{{P}, "logit_bias": 5}}', "logit_bias", "got 5, expected an object"),
        (f'{{{P}, "logit_bias": [[5, 1]]}}', "logit_bias", "got a list, expected an object"),
        (f'{{{P}, "logit_bias": {{"x": 1}}}}', "logit_bias.x", 'got "x", expected a token id'),
        (f'{{{P}, "logit_bias": {{"-1": 1}}}}', "logit_bias.-1", "expected a token id"),
        (f'{{{P}, "logit_bias": {{" 05": 1}}}}', "logit_bias. 05", "expected a token id"),
        (f'{{{P}, "logit_bias": {{"{"9" * 5000}": 1}}}}', f"logit_bias.{'9' * 64}", "a token id"),
        (f'{{{P}, "logit_bias": {{"5": "1"}}}}', "logit_bias.5", 'got "1", expected a number'),
        (f'{{{P}, "logit_bias": {{"5": null}}}}', "logit_bias.5", "got null, expected a number"),
        (f'{{{P}, "logit_bias": {{"5": 101}}}}', "logit_bias", "expected [-100.0, 100.0]"),
        (f'{{{P}, "logit_bias": {{"256": 1}}}}', "logit_bias", "token id 256, expected 0..255"),
        (
            json.dumps({"prompt": "x", "logit_bias": dict.fromkeys(range(1025), 1)}),
            "logit_bias",
            "got an object, at most 1024 entries",
        ),
        (
            '{"text": "x", "sampling_params": {"repetition_penalty": -1}}',
            "sampling_params.repetition_penalty",
            "got -1.0, expected [0.01, 100.0]",
        ),
        (
            '{"text": "x", "sampling_params": {"logit_bias": {"300": 1}}}',
            "sampling_params.logit_bias",
            "got token id 300, expected 0..255",
        ),
        (f'{{{P}, "response_format": {{"type": "json"}}}}', "response_format", "got an object"),
        (
            '{"text": "x", "sampling_params": []}',
            "sampling_params",
            "got a list, expected an object",
        ),
        (
            '{"text": "x", "sampling_params": {"max_new_tokens": -1}}',
            "sampling_params.max_new_tokens",
            "got -1, expected an integer in 1..",
        ),
        (
            '{"text": "x", "sampling_params": {"max_new_tokns": 1}}',
            "sampling_params.max_new_tokns",
            "unknown field, did you mean max_new_tokens?",
        ),
        (
            f'{{{P}, "temperature": 1, "sampling_params": {{"temperature": 0}}}}',
            "sampling_params",
            "got it beside prompt, expected one of them: sampling_params is SGLang's",
        ),
        ('{"prompt": ""}', "prompt", "got an empty prompt, expected text"),
        ('{"prompt": []}', "prompt", "got 0 prompts, expected 1 to 32"),
        ('{"prompt": ["a", ""]}', "prompt", "got an empty prompt, expected text"),
        (json.dumps({"prompt": ["a"] * 33}), "prompt", "got 33 prompts, expected 1 to 32"),
        ('{"prompt": 5}', "prompt", "got 5, expected a string or a list of strings"),
        ('{"prompt": ["a", 5]}', "prompt", "got 5, expected a string or a list of strings"),
        ('{"prompt": null}', "prompt", "missing, expected prompt or input_ids"),
        ("{}", "prompt", "missing, expected prompt or input_ids"),
        (f'{{{P}, "input_ids": [1]}}', "input_ids", "got it beside prompt"),
        (f'{{{P}, "text": "y"}}', "text", "got it beside prompt"),
        ('{"input_ids": []}', "input_ids", "got an empty prompt, expected token ids"),
        ('{"input_ids": [[]]}', "input_ids", "got an empty prompt, expected token ids"),
        ('{"input_ids": [1, "2"]}', "input_ids", 'got "2", expected a list of token ids'),
        ('{"input_ids": [-1]}', "input_ids", "got token id -1, expected 0..255"),
        ('{"input_ids": [[1], [256]]}', "input_ids", "got token id 256, expected 0..255"),
        ("", None, "not valid JSON: EOF"),
        ("{", None, "not valid JSON: EOF"),
        ("[]", None, "got a list, expected a JSON object"),
        ("5", None, "got 5, expected a JSON object"),
        ('{"prompt": "\\ud800"}', None, "not valid JSON"),
        (f'{{{P}, "seed": {"9" * 5000}}}', None, "not valid JSON: number out of range"),
        ("[" * 100_000, None, "not valid JSON: recursion limit exceeded"),
        ('{"prompt":' * 100_000, None, "not valid JSON: recursion limit exceeded"),
        (b'{"prompt": "\xff"}', None, "got invalid UTF-8 at byte 12"),
    ],
)
def test_bad_body_is_a_400_that_names_the_field(client, body, param, message):
    response = client.generate(body if isinstance(body, bytes) else body.encode())
    error = _error(response)
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["message"].startswith(f"{param or 'body'}: ")
    assert message in error["message"]


def test_duplicate_keys_are_harmless(client):
    response = client.generate(b'{"prompt": "a", "prompt": "b", "max_tokens": 1}')
    assert response.json()["text"] == "v"


def test_server_still_serves_after_bad_input(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    for body in (b"[" * 100_000, b"\xff", b"{}", b'{"prompt": 1}'):
        assert client.generate(body).status_code == 400
    assert client.generate({"prompt": "a", "max_tokens": 1}).status_code == 200
    assert engine.running == {}


def test_refusal_by_the_engine_keeps_its_status_even_when_streaming(client):
    for stream in (False, True):
        body = {"prompt": "a", "stop_token_ids": [13], "stream": stream}
        response = client.generate(body)
        assert (response.status_code, _error(response)["param"]) == (400, "stop_token_ids")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_full_queue_is_a_429_with_retry_after(make_client, stream, prompt):
    response = make_client(FakeEngine(queue_full=True)).generate(
        {"prompt": prompt, "stream": stream}
    )
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert _error(response)["type"] == "rate_limit_error"


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_engine_that_gives_up_is_a_500_with_its_reason(make_client, prompt):
    engine = FakeEngine(fail_after=1)
    response = make_client(engine).generate({"prompt": prompt})
    assert response.status_code == 500
    assert _error(response)["message"] == "logits: NaN at token 3"
    assert engine.running == {}


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_failure_in_mid_stream_is_an_event_before_done(make_client, prompt):
    engine = FakeEngine(fail_after=2)
    response = make_client(engine).generate({"prompt": prompt, "stream": True})
    assert response.status_code == 200
    *_, failure, done, empty = response.text.split("\n\n")
    assert (
        json.loads(failure.removeprefix("data: "))["error"]["message"] == "logits: NaN at token 3"
    )
    assert (done, empty) == ("data: [DONE]", "")
    assert engine.running == {}


def test_death_of_the_engine_ends_the_request_and_health(make_client):
    client = make_client(FakeEngine(die_after=1))
    assert client.get("/health").status_code == 200
    response = client.generate({"prompt": "a"})
    assert (response.status_code, _error(response)["code"]) == (503, "engine_dead")
    response = client.get("/health")
    assert (response.status_code, _error(response)["code"]) == (503, "dead")
    assert client.generate({"prompt": "a"}).status_code == 503


def test_unforeseen_error_is_a_500_without_its_text(make_client, caplog):
    class Broken(FakeEngine):
        def generate(self, *args, **options):
            raise KeyError("secret")

    client = make_client(Broken())
    for stream in (False, True):
        response = client.generate({"prompt": "a", "stream": stream})
        error = _error(response)
        assert response.status_code == 500
        assert "secret" not in error["message"]
        assert response.headers["x-request-id"]
    assert "secret" in caplog.text
