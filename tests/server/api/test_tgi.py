from __future__ import annotations

import pytest
from fake_engine import INFO, FakeEngine
from streams import events

PROOF = {"deterministic": True, "seed": None, "system_fingerprint": INFO.system_fingerprint}


def _stream(client, body: dict, path: str = "/generate_stream") -> list[dict]:
    response = client.post(path, body)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-detinfer-deterministic"] == "true"
    return events(response.text, done=False)  # TGI sends no [DONE]


def _token(letter: str, **others: object) -> dict:
    return {"id": ord(letter), "text": letter, "logprob": -0.5, "special": False, **others}


def test_events_are_tgis_with_our_proof_on_the_last(client):
    parameters = {"max_new_tokens": 2, "seed": 9, "details": True, "do_sample": False}
    body = {"inputs": "a", "parameters": parameters, "stream": True}
    first, last = _stream(client, body)
    digest = last.pop("digest")
    assert first == {"index": 1, "token": _token("u"), "generated_text": None, "details": None}
    assert last == {
        "index": 2,
        "token": _token("v"),
        "generated_text": "uv",
        "details": {
            "finish_reason": "length",
            "generated_tokens": 2,
            "seed": 9,
            "input_length": 1,
        },
        **PROOF,
        "seed": 9,
    }
    assert client.post("/", body | {"stream": False}).json()[0]["digest"] == digest
    for path in ("/", "/generate"):
        assert [one["token"] for one in _stream(client, body, path)] == [_token("u"), _token("v")]


def test_plain_answers_are_tgis_with_our_proof(client):
    body = {"inputs": "ab", "parameters": {"max_new_tokens": 3}}
    response = client.generate(body)
    answer = response.json()
    assert client.post("/", body).json() == [answer]  # TGI's own route makes a list of it
    assert answer.pop("digest") == response.headers["x-detinfer-digest"]
    assert answer == {"generated_text": "opq", **PROOF}


def test_details_have_tokens_and_prefill(client):
    parameters = {"max_new_tokens": 2, "decoder_input_details": True, "top_n_tokens": 2}
    [answer] = client.post("/", {"inputs": "ab", "parameters": parameters}).json()
    assert answer["details"] == {
        "finish_reason": "length",
        "generated_tokens": 2,
        "seed": None,
        "prefill": [
            {"id": 97, "text": "a", "logprob": None},
            {"id": 98, "text": "b", "logprob": -0.5},
        ],
        "tokens": [_token("o"), _token("p")],
        "top_tokens": [
            [_token("o"), _token("p", logprob=-1.5)],
            [_token("p"), _token("q", logprob=-1.5)],
        ],
    }
    parameters = {"max_new_tokens": 2, "details": True}
    [plain] = client.post("/", {"inputs": "ab", "parameters": parameters}).json()
    assert plain["details"]["prefill"] == []
    assert "top_tokens" not in plain["details"]
    assert plain["digest"] == answer["digest"]


@pytest.mark.parametrize(
    ("script", "parameters", "text", "reason"),
    [
        ("né 😀", {"max_new_tokens": 8}, "né 😀", "length"),
        ("ok\0", {}, "ok", "eos_token"),
        ("né STOP", {"stop": ["STOP"]}, "né ", "stop_sequence"),
    ],
)
def test_texts_of_tokens_add_up_to_the_whole(make_client, script, parameters, text, reason):
    client = make_client(FakeEngine(script=script.encode()))
    body = {"inputs": "a", "parameters": {"max_new_tokens": 20, "details": True} | parameters}
    values = _stream(client, body)
    last = values[-1]
    shown = "".join(one["token"]["text"] for one in values if not one["token"]["special"])
    assert shown == last["generated_text"]
    assert last["generated_text"] == text
    assert last["details"]["finish_reason"] == reason
    assert last["details"]["generated_tokens"] == len(values)
    assert [one["index"] for one in values] == list(range(1, len(values) + 1))
    whole = client.generate(body).json()
    assert whole["generated_text"] == text
    assert whole["details"]["tokens"] == [one["token"] for one in values]


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False, "temperature": 1.0, "top_p": 1.0}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": False, "temperature": 0.5}, 0.5),  # text_generation.Client says so
        ({"top_p": 0.9}, 1.0),
        ({"do_sample": False, "top_k": 4}, 1.0),
        ({"do_sample": False, "temperature": 0.0, "top_k": 4}, 0.0),
    ],
)
def test_sampling_is_decided_as_by_tgi(make_client, parameters, temperature):
    engine = FakeEngine()
    assert make_client(engine).post("/", {"inputs": "a", "parameters": parameters}).is_success
    assert engine.seen[0].temperature == temperature


@pytest.mark.parametrize("stream", [False, True])
def test_full_text_begins_with_the_prompt(client, stream):
    parameters = {"max_new_tokens": 2, "return_full_text": True}
    body = {"inputs": "ab", "parameters": parameters, "stream": stream}
    answers = _stream(client, body) if stream else client.post("/", body).json()
    assert answers[-1]["generated_text"] == "abop"


def test_truncate_keeps_the_end_of_the_prompt(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    for truncate in (2, 9):
        parameters = {"truncate": truncate, "max_new_tokens": 1}
        assert client.post("/", {"inputs": "abc", "parameters": parameters}).is_success
    assert engine.prompts == [[98, 99], [97, 98, 99]]


class _Unequal(FakeEngine):
    """Its sampled answers are as likely as their seeds are small."""

    async def generate(self, prompt, params, request_id, cache_salt="", answer=()):
        async for output in super().generate(prompt, params, request_id, cache_salt):
            output.logprobs = [one._replace(logprob=-float(output.seed)) for one in output.logprobs]
            yield output


def test_best_of_is_the_likeliest_on_average(make_client):
    client = make_client(_Unequal())
    parameters = {"best_of": 4, "do_sample": True, "details": True, "max_new_tokens": 2}
    answer = client.generate({"inputs": "a", "parameters": parameters}).json()
    others = answer["details"]["best_of_sequences"]
    assert len(others) == 3
    assert answer["seed"] < min(one["seed"] for one in others)
    alone = {"do_sample": True, "seed": answer["seed"], "max_new_tokens": 2}
    again = client.generate({"inputs": "a", "parameters": alone | {"details": True}}).json()
    assert again["digest"] == answer["digest"]
    assert others[0].keys() >= {"generated_text", "finish_reason", "tokens", "prefill", "digest"}


@pytest.mark.parametrize(
    ("parameters", "param", "message"),
    [
        ({"max_new_tokens": 0}, "parameters.max_new_tokens", "got 0, expected an integer in 1.."),
        ({"max_new_tokns": 1}, "parameters.max_new_tokns", "did you mean max_new_tokens?"),
        ({"details": 1}, "parameters.details", "got 1, expected true or false"),
        ({"n": 2}, "parameters.n", "got 2, expected 1"),
        ({"grammar": {}}, "parameters.grammar", 'got an object, expected {"type": "json", '),
        ({"typical_p": 0.5}, "parameters.typical_p", "not supported yet, expected 1.0 or null"),
        ({"watermark": True}, "parameters.watermark", "not supported yet"),
        ({"adapter_id": "x"}, "parameters.adapter_id", "not supported yet"),
        ({"truncate": 0}, "parameters.truncate", "got 0, expected an integer in 1.."),
        ({"truncate": 1 << 21}, "parameters.truncate", "expected an integer in 1..1048576"),
        ({"top_n_tokens": 21}, "parameters.top_n_tokens", "got 21, expected"),
        ({"best_of": 0}, "parameters.best_of", "got 0, expected an integer in 1..128"),
        ({"best_of": 2, "do_sample": True}, "parameters.best_of", "a stream has one answer"),
        (
            {"do_sample": True, "temperature": 0.0},
            "parameters.do_sample",
            "got true with temperature = 0",
        ),
        ({"max_new_tokens": 999}, "parameters.max_new_tokens", "after a prompt of 1 tokens"),
    ],
)
def test_bad_parameters_are_a_400_that_names_the_field(client, parameters, param, message):
    response = client.post("/generate_stream", {"inputs": "a", "parameters": parameters})
    assert response.status_code == 400
    error = response.json()
    assert error.keys() == {"error", "error_type", "param", "code"}
    assert (error["error_type"], error["param"]) == ("validation", param)
    assert param in error["error"]
    assert message in error["error"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 2}, "got 2, expected 1 without sampling"),
        ({"best_of": 2, "n": 2, "do_sample": True}, "got 2, expected 1 with parameters.n"),
    ],
)
def test_best_of_needs_several_different_answers(client, parameters, message):
    response = client.post("/", {"inputs": "a", "parameters": parameters})
    assert (response.status_code, response.json()["param"]) == (400, "parameters.best_of")
    assert message in response.json()["error"]


def test_neutral_values_change_nothing(client):
    neutral = {
        "adapter_id": None,
        "best_of": 1,
        "decoder_input_details": False,
        "details": False,
        "do_sample": False,
        "frequency_penalty": 0.0,
        "grammar": None,
        "max_new_tokens": 3,
        "repetition_penalty": 1.0,
        "return_full_text": False,
        "seed": None,
        "stop": [],
        "temperature": 1.0,
        "top_k": None,
        "top_n_tokens": 0,
        "top_p": 1.0,
        "truncate": None,
        "typical_p": 1.0,
        "watermark": False,
    }
    plain = client.post("/", {"inputs": "a", "parameters": {"max_new_tokens": 3}}).json()
    given = {"inputs": "a", "parameters": neutral, "stream": False}
    assert client.post("/", given).json() == plain
    nulls = dict.fromkeys(neutral) | {"max_new_tokens": 3}
    assert client.post("/", {"inputs": "a", "parameters": nulls, "stream": None}).json() == plain


@pytest.mark.parametrize("inputs", [None, 5, ["a"], ""])
def test_bad_inputs_are_a_400(client, inputs):
    response = client.post("/generate_stream", {"inputs": inputs})
    assert response.status_code == 400
    assert response.json()["param"] == "inputs"


def test_every_failure_is_in_tgis_words(make_client):
    body = {"inputs": "a"}
    loading, full = make_client(loading=True), make_client(FakeEngine(queue_full=True))
    broken = make_client(FakeEngine(fail_after=1))
    for path in ("/", "/generate_stream"):
        response = loading.post(path, body)
        assert (response.status_code, response.json()["code"]) == (503, "loading")
        response = full.post(path, b"{")
        assert (response.status_code, response.json()["error_type"]) == (400, "validation")
    for path in ("/", "/generate", "/generate_stream"):
        response = full.post(path, body)
        assert (response.status_code, response.json()["error_type"]) == (429, "overloaded")
        assert response.headers["retry-after"] == "3"
    for path in ("/", "/generate"):
        response = broken.post(path, body)
        assert (response.status_code, response.json()["error_type"]) == (500, "generation")
    for path in ("/", "/generate", "/generate_stream"):
        last = _stream(broken, body | {"stream": True}, path)[-1]
        assert (last["error_type"], last["code"]) == ("generation", "generation_failed")
        assert last["error"] == "logits: NaN at token 3"


def test_info_has_tgis_limits(client):
    info = client.get("/info").json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == (
        "fake-model",
        256,
        255,
    )


@pytest.mark.parametrize("model", ["tgi", "dummy"])
def test_what_clients_of_tgi_call_no_model_is_none(client, model):
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for path, body in [("/v1/chat/completions", chat), ("/v1/completions", {"prompt": "a"})]:
        answer = client.post(path, body | {"model": model})
        assert (answer.status_code, answer.json()["model"]) == (200, "fake-model")
        assert client.post(path, body | {"model": f"{model}2"}).status_code == 404
