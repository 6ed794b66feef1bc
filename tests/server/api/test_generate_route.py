from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_engine import INFO, FakeEngine

from detinfer.params import choice_seed


def _events(text: str) -> list[dict]:
    frames = text.split("\n\n")
    assert frames[-1] == ""
    assert frames[-2] == "data: [DONE]"
    assert all(frame.startswith("data: ") for frame in frames[:-1])
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def test_answer_has_every_documented_field(client):
    response = client.generate({"prompt": "ab", "max_tokens": 3})
    assert response.status_code == 200
    answer = response.json()
    assert answer.pop("id").startswith("gen-")
    digest = answer.pop("digest")
    assert len(digest) == 64
    assert answer == {
        "text": "opq",
        "output_ids": [111, 112, 113],
        "finish_reason": "length",
        "deterministic": True,
        "seed": None,
        "system_fingerprint": INFO.system_fingerprint,
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 0},
        "logprobs": None,
    }
    assert response.headers["x-detinfer-deterministic"] == "true"
    assert response.headers["x-detinfer-digest"] == digest


def test_curl_without_a_json_content_type_is_served(client):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert client.generate(b'{"prompt": "x"}', headers=headers).status_code == 200


def test_prompt_is_tokenised_as_raw_text_and_ids_are_taken_as_they_are(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    client.generate({"prompt": "hi", "max_tokens": 1})
    client.generate({"input_ids": [7, 8, 9], "max_tokens": 1})
    client.generate({"prompt": "y" * 5000, "max_tokens": 1})  # too long for the model
    assert engine.prompts == [[104, 105], [7, 8, 9]]


def test_long_prompt_gives_the_tokens_of_its_text(make_client):
    engine = FakeEngine()
    engine.info = replace(INFO, max_model_len=10_000, num_pages=100)
    response = make_client(engine).generate({"prompt": "xyz" * 1000, "max_tokens": 1})
    assert response.status_code == 200
    assert engine.prompts == [list(b"xyz" * 1000)]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ["a", "b"]},
        {"text": ["a", "b"], "deterministic": True},
        {"inputs": ["a", "b"], "deterministic": True},
        {"input_ids": [[97], [98]]},
    ],
)
def test_list_of_prompts_gives_a_list_in_order(client, body):
    answers = client.generate({**body, "max_tokens": 2}).json()
    assert [answer["text"] for answer in answers] == ["uv", "vw"]
    assert len({answer["id"] for answer in answers}) == 2


def test_list_of_one_gives_a_list_of_one(client):
    assert len(client.generate({"prompt": ["a"]}).json()) == 1


def test_stream_equals_the_plain_answer(client):
    body = {"prompt": "ab", "max_tokens": 4, "seed": 5}
    plain = client.generate(body).json()
    response = client.generate({**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-detinfer-deterministic"] == "true"
    assert "content-length" not in response.headers
    *deltas, last = _events(response.text)
    assert "".join(event["text"] for event in deltas) == plain["text"]
    assert [i for event in deltas for i in event["output_ids"]] == plain["output_ids"]
    assert (last["text"], last["output_ids"]) == ("", [])
    for field in (
        "finish_reason",
        "digest",
        "seed",
        "usage",
        "deterministic",
        "system_fingerprint",
    ):
        assert last[field] == plain[field]
    assert all("index" not in event for event in [*deltas, last])


def test_stream_of_several_prompts_is_indexed(client):
    events = _events(client.generate({"prompt": ["a", "b"], "max_tokens": 3, "stream": True}).text)
    for index, text in enumerate(["uvw", "vwx"]):
        own = [event for event in events if event["index"] == index]
        assert "".join(event["text"] for event in own) == text
        assert own[-1]["finish_reason"] == "length"


def test_logprobs_plain_and_streamed(client):
    body = {"prompt": "a", "max_tokens": 2, "logprobs": 1}
    expected = [
        {"token_id": 117, "logprob": -0.5, "top": [[117, -0.5]]},
        {"token_id": 118, "logprob": -0.5, "top": [[118, -0.5]]},
    ]
    assert client.generate(body).json()["logprobs"] == expected
    *deltas, last = _events(client.generate({**body, "stream": True}).text)
    assert [one for event in deltas for one in event["logprobs"]] == expected
    assert last["logprobs"] == []


@pytest.mark.parametrize(("prompt", "form"), [("prompt", None), ("inputs", "parameters")])
def test_penalties_and_bias_reach_the_engine(make_client, prompt, form):
    engine = FakeEngine()
    penalties = {"repetition_penalty": 1.2, "presence_penalty": 1, "frequency_penalty": -0.5}
    asked = {**penalties, "logit_bias": {"65": -100, "0": 2.5}}
    body = {prompt: "a", **(asked if form is None else {form: asked})}
    assert make_client(engine).generate(body).status_code == 200
    assert {name: getattr(engine.seen[0], name) for name in penalties} == penalties
    assert engine.seen[0].logit_bias == ((0, 2.5), (65, -100.0))


def test_neutral_values_of_unbuilt_options_are_accepted(client):
    body = {
        "prompt": "a",
        "max_tokens": 1,
        "repetition_penalty": 1.0,
        "n": 1,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "use_beam_search": False,
        "best_of": None,
    }
    assert client.generate(body).status_code == 200


@pytest.mark.parametrize("default", [True, False])
def test_deterministic_default_is_the_servers_and_each_request_may_differ(make_client, default):
    client = make_client(default_deterministic=default)
    for asked, expected in [({}, default), ({"deterministic": not default}, not default)]:
        response = client.generate({"prompt": "a", "max_tokens": 1, **asked})
        assert response.json()["deterministic"] is expected
        assert response.headers["x-detinfer-deterministic"] == str(expected).lower()


def test_max_tokens_is_clamped_when_not_given_and_an_error_when_given(client):
    prompt = "x" * 200  # of 256
    answer = client.generate({"prompt": prompt}).json()
    assert answer["usage"]["completion_tokens"] == 56
    error = client.generate({"prompt": prompt, "max_tokens": 57}).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert client.generate({"prompt": prompt, "max_tokens": 56}).status_code == 200


def test_too_long_prompt_of_a_list_starts_none_of_them(make_client):
    engine = FakeEngine()
    response = make_client(engine).generate({"prompt": ["a", "x" * 256], "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert engine.prompts == []


def test_non_ascii_text_survives(make_client):
    text = "ü\u2028😀"
    client = make_client(FakeEngine(script=text.encode()))
    body = {"prompt": "a", "max_tokens": len(text.encode())}
    assert client.generate(body).json()["text"] == text
    *deltas, _ = _events(client.generate({**body, "stream": True}).text)
    assert [event["text"] for event in deltas if event["text"]] == list(text)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"prompt": ["a", "b"], "n": 2, "max_tokens": 2, "temperature": 1, "seed": 5}, None),
        (
            {
                "text": ["a", "b"],
                "sampling_params": {
                    "n": 2,
                    "max_new_tokens": 2,
                    "temperature": 1,
                    "sampling_seed": 5,
                },
            },
            "meta_info",
        ),
        (
            {
                "inputs": ["a", "b"],
                "parameters": {"n": 2, "max_new_tokens": 2, "do_sample": True, "seed": 5},
            },
            None,
        ),
    ],
)
def test_n_gives_the_answers_of_the_first_prompt_and_then_of_the_second(client, body, place):
    answers = [
        answer if place is None else answer[place] for answer in client.generate(body).json()
    ]
    assert [answer["seed"] for answer in answers] == [5, choice_seed(5, 1)] * 2
    for answer, prompt in zip(answers, "aabb", strict=True):
        alone = {"prompt": prompt, "max_tokens": 2, "temperature": 1, "seed": answer["seed"]}
        assert client.generate(alone).json()["digest"] == answer["digest"]
    if "inputs" in body:
        return  # a stream of TGI's has one answer
    streamed = _events(client.generate({**body, "stream": True}).text)
    ends = {event["index"]: event if place is None else event[place] for event in streamed}
    assert [ends[i]["digest"] for i in range(4)] == [answer["digest"] for answer in answers]


def test_unseeded_choices_report_seeds_that_differ(client):
    answers = client.generate({"prompt": "a", "n": 3, "max_tokens": 2, "temperature": 1}).json()
    assert len({answer["seed"] for answer in answers}) == 3


def test_salt_of_the_key_reaches_the_engine(make_client):
    engine = FakeEngine()
    client = make_client(engine)

    async def salted(scope, receive, send):
        scope.setdefault("state", {})["cache_salt"] = "one key's"
        await app(scope, receive, send)

    app, client.app = client.app, salted
    for stream in (False, True):
        client.generate({"prompt": "a", "max_tokens": 1, "stream": stream})
    assert engine.salts == ["one key's"] * 2
