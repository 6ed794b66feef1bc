"""``POST /generate`` speaks several dialects; the body's fields say which."""

from __future__ import annotations

import pytest

OURS, SGLANG, TGI = "finish_reason", "meta_info", "generated_text"


@pytest.mark.parametrize(
    ("body", "mark"),
    [
        ({"prompt": "a"}, OURS),
        ({"input_ids": [97], "stream": False}, OURS),
        ({"inputs": "a"}, TGI),
        ({"inputs": "a", "stream": False, "parameters": None}, TGI),
        ({"inputs": "a", "parameters": {"max_new_tokens": 2}}, TGI),
        ({"text": "a"}, SGLANG),
        ({"text": "a", "stream": False, "sampling_params": None}, SGLANG),
        ({"text": "a", "sampling_params": {"max_new_tokens": 2}}, SGLANG),
        ({"input_ids": [97], "sampling_params": {}}, SGLANG),
        ({"text": "a", "deterministic": True, "rid": "x"}, SGLANG),
        # Names of others for our prompt, beside fields of ours.
        ({"inputs": "a", "max_tokens": 2}, OURS),
        ({"text": "a", "max_tokens": 2}, OURS),
    ],
)
def test_the_fields_decide_what_an_answer_looks_like(client, body, mark):
    response = client.generate(body)
    assert response.status_code == 200, response.text
    assert [name for name in (OURS, SGLANG, TGI) if name in response.json()] == [mark]


@pytest.mark.parametrize(
    ("body", "param", "other"),
    [
        ({"prompt": "a", "parameters": {}}, "parameters", "prompt"),
        ({"inputs": "a", "parameters": {}, "max_tokens": 2}, "max_tokens", "parameters"),
        ({"inputs": "a", "text": "a"}, "inputs", "text"),
        ({"prompt": "a", "sampling_params": {}}, "sampling_params", "prompt"),
        ({"text": "a", "sampling_params": {}, "temperature": 0}, "temperature", "sampling_params"),
        ({"rid": "x", "inputs": "a"}, "inputs", "rid"),
        ({"parameters": {"max_new_tokens": 2}, "text": "a"}, "text", "parameters"),
    ],
)
def test_a_body_in_two_dialects_is_a_400_that_names_both_fields(client, body, param, other):
    response = client.generate(body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert f"{param}: got it beside {other}, expected one of" in error["message"]


@pytest.mark.parametrize("body", [[], 5, "inputs"])
def test_a_body_that_is_no_object_has_no_dialect(client, body):
    error = client.generate(body).json()["error"]
    assert "expected a JSON object" in error["message"]
