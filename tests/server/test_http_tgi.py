from __future__ import annotations

import pytest
from fake_engine import FakeEngine
from streams import events

PATH = "/generate_stream"


def _stream(client, body: dict) -> list[dict]:
    response = client.post(PATH, body)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-detinfer-deterministic"] == "true"
    return events(response.text, done=False)  # TGI sends no [DONE]


def test_events_are_tgis(client):
    parameters = {"max_new_tokens": 2, "seed": 9, "details": True, "do_sample": False}
    assert _stream(client, {"inputs": "a", "parameters": parameters, "stream": True}) == [
        {
            "index": 1,
            "token": {"id": 117, "text": "u", "logprob": -0.5, "special": False},
            "generated_text": None,
            "details": None,
        },
        {
            "index": 2,
            "token": {"id": 118, "text": "v", "logprob": -0.5, "special": False},
            "generated_text": "uv",
            "details": {
                "finish_reason": "length",
                "generated_tokens": 2,
                "seed": 9,
                "input_length": 1,
            },
        },
    ]


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
    values = _stream(client, {"inputs": "a", "parameters": {"max_new_tokens": 20} | parameters})
    last = values[-1]
    shown = "".join(one["token"]["text"] for one in values if not one["token"]["special"])
    assert shown == last["generated_text"]
    assert last["generated_text"] == text
    assert last["details"]["finish_reason"] == reason
    assert last["details"]["generated_tokens"] == len(values)
    assert [one["index"] for one in values] == list(range(1, len(values) + 1))


@pytest.mark.parametrize(
    ("parameters", "param", "message"),
    [
        ({"max_new_tokens": 0}, "parameters.max_new_tokens", "got 0, expected an integer in 1.."),
        ({"max_new_tokns": 1}, "parameters.max_new_tokns", "did you mean max_new_tokens?"),
        ({"details": 1}, "parameters.details", "got 1, expected true or false"),
        ({"n": 2}, "parameters.n", "got 2, expected 1"),
        ({"grammar": {}}, "parameters.grammar", "not supported yet"),
        ({"max_new_tokens": 999}, "parameters.max_new_tokens", "after a prompt of 1 tokens"),
    ],
)
def test_bad_parameters_are_a_400_that_names_the_field(client, parameters, param, message):
    response = client.post(PATH, {"inputs": "a", "parameters": parameters})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize("inputs", [None, 5, ["a"], ""])
def test_bad_inputs_are_a_400(client, inputs):
    response = client.post(PATH, {"inputs": inputs})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "inputs"


def test_failure_in_mid_stream_is_the_last_event(make_client):
    values = _stream(make_client(FakeEngine(fail_after=1)), {"inputs": "a"})
    assert values[-1]["error"]["code"] == "generation_failed"
