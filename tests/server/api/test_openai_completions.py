from __future__ import annotations

import pytest
from fake_engine import INFO, FakeEngine
from streams import events

from detinfer.params import choice_seed
from detinfer.server.api.openai.completion_body import CompletionRequest

PATH = "/v1/completions"


def _frame(value: dict) -> dict:
    """Without what differs from call to call."""
    assert value.pop("id").startswith("cmpl-")
    assert value.pop("created") > 1_600_000_000
    for choice in value["choices"]:
        if choice["finish_reason"] is not None:
            assert len(choice.pop("digest")) == 64
    return value


def _usage(prompt: int, completion: int, cached: int = 0) -> dict:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def test_answer_is_openais_object(client):
    response = client.post(PATH, {"prompt": "ab", "max_tokens": 3, "temperature": 0})
    digest = response.json()["choices"][0]["digest"]
    assert response.headers["x-detinfer-digest"] == digest
    assert response.headers["x-detinfer-deterministic"] == "true"
    assert _frame(response.json()) == {
        "object": "text_completion",
        "model": "fake-model",
        "system_fingerprint": INFO.system_fingerprint,
        "choices": [
            {
                "index": 0,
                "text": "opq",
                "logprobs": None,
                "finish_reason": "length",
                "seed": None,
                "deterministic": True,
            }
        ],
        "usage": _usage(2, 3),
    }


def test_echo_with_logprobs_begins_with_the_prompt_and_nulls(client):
    body = {"prompt": "aé", "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 2}
    choice = client.post(PATH, body).json()["choices"][0]
    assert choice["text"] == "aéu"
    assert choice["logprobs"] == {
        "tokens": ["a", "�", "�", "u"],
        "token_logprobs": [None, -0.5, -0.5, -0.5],
        # Of tokens that spell alike the likeliest stands.
        "top_logprobs": [None, {"�": -0.5}, {"�": -0.5}, {"u": -0.5, "v": -1.5}],
        "text_offset": [0, 1, 1, 2],
    }


def test_logprobs_zero_names_the_token_itself(client):
    body = {"prompt": "a", "max_tokens": 1, "temperature": 0, "logprobs": 0}
    logprobs = client.post(PATH, body).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["u"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"u": -0.5}],
        "text_offset": [0],
    }


def test_max_tokens_zero_with_echo_scores_the_prompt_alone(client):
    body = {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 1}
    for stream in (False, True):
        response = client.post(PATH, {**body, "stream": stream})
        [value] = events(response.text) if stream else [response.json()]
        [choice] = value["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
        assert choice["logprobs"]["tokens"] == ["a", "b"]
        if not stream:
            assert value["usage"] == _usage(2, 0)


def test_echo_of_token_ids_spells_them(client):
    body = {"prompt": [1, 97, 2], "max_tokens": 1, "temperature": 0, "echo": True}
    assert (
        client.post(PATH, body).json()["choices"][0]["text"].startswith("<|im_start|>a<|im_end|>")
    )


@pytest.mark.parametrize("prompt", [["a", "b"], [[97], [98]]])
def test_choices_are_prompt_major_and_each_is_its_own_answer(client, prompt):
    body = {"prompt": prompt, "n": 2, "best_of": 2, "seed": 7, "max_tokens": 2}
    response = client.post(PATH, body)
    choices = response.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert [choice["seed"] for choice in choices] == [7, choice_seed(7, 1)] * 2
    digests = [choice["digest"] for choice in choices]
    assert response.headers["x-detinfer-digest"] == ", ".join(digests)
    assert response.json()["usage"] == _usage(2, 8)
    for index, choice in enumerate(choices):
        alone = {"prompt": prompt[index // 2], "seed": choice["seed"], "max_tokens": 2}
        [one] = client.post(PATH, alone).json()["choices"]
        assert (one["digest"], one["text"]) == (choice["digest"], choice["text"])


def test_token_ids_of_one_prompt_are_one_prompt(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    assert len(client.post(PATH, {"prompt": [7, 8, 9]}).json()["choices"]) == 1
    assert engine.prompts == [[7, 8, 9]]


def test_defaults_are_openais_and_null_means_default(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    body = {"prompt": "a"}
    nulls = dict.fromkeys(CompletionRequest.model_fields.keys() - body.keys())
    for given in (body, {**nulls, **body}):
        answer = client.post(PATH, given).json()
        assert answer["usage"]["completion_tokens"] == 16
        assert isinstance(answer["choices"][0]["seed"], int)
    assert engine.seen[0] == engine.seen[1]
    assert (engine.seen[0].temperature, engine.seen[0].top_p) == (1.0, 1.0)


def test_max_tokens_is_clamped_only_if_it_was_not_given(client):
    prompt = "x" * 250  # of 256
    assert client.post(PATH, {"prompt": prompt}).json()["usage"]["completion_tokens"] == 6
    error = client.post(PATH, {"prompt": prompt, "max_tokens": 7}).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")


def test_what_openai_clients_send_beside_is_accepted(client):
    body = {
        "model": "fake-model",
        "prompt": "a",
        "max_tokens": 1,
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "suffix": "",
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "skip_special_tokens": True,
        "response_format": {"type": "text"},
    }
    assert client.post(PATH, body).status_code == 200


def test_extras_reach_the_engine(make_client):
    engine = FakeEngine()
    extras = {
        "top_k": 5,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "min_tokens": 1,
        "ignore_eos": True,
        "deterministic": False,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
    }
    body = {"prompt": "a", "logit_bias": {"65": -100}, "stop_token_ids": [3], **extras}
    assert make_client(engine).post(PATH, body).status_code == 200
    assert {name: getattr(engine.seen[0], name) for name in extras} == extras
    assert engine.seen[0].logit_bias == ((65, -100.0),)
    assert engine.seen[0].stop_token_ids == (3,)


def test_other_model_is_a_404(make_client):
    client = make_client(served_model_name="org/mine")
    for model, status in [("org/mine", 200), ("fake-model", 404), ("", 404)]:
        response = client.post(PATH, {"prompt": "a", "model": model})
        assert response.status_code == status
        if status == 404:
            assert response.json()["error"]["code"] == "model_not_found"


def test_chunks_are_openais_objects(client):
    body = {
        "prompt": "ab",
        "max_tokens": 2,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    response = client.post(PATH, body)
    assert response.headers["content-type"].startswith("text/event-stream")
    values = events(response.text)
    assert len({value["id"] for value in values}) == 1
    frame = {
        "object": "text_completion",
        "model": "fake-model",
        "system_fingerprint": INFO.system_fingerprint,
    }
    first = {"index": 0, "text": "o", "logprobs": None, "finish_reason": None}
    last = {"index": 0, "text": "p", "logprobs": None, "finish_reason": "length"}
    last |= {"seed": None, "deterministic": True}
    assert [_frame(value) for value in values] == [
        {**frame, "choices": [first], "usage": None},
        {**frame, "choices": [last], "usage": None},
        {**frame, "choices": [], "usage": _usage(2, 2)},
    ]


def test_stream_without_usage_has_none_and_continuous_usage_counts_up(client):
    body = {"prompt": "ab", "max_tokens": 2, "stream": True}
    assert all("usage" not in value for value in events(client.post(PATH, body).text))
    body["stream_options"] = {"continuous_usage_stats": True, "include_usage": True}
    values = events(client.post(PATH, body).text)
    assert [value["usage"] for value in values] == [_usage(2, 1), _usage(2, 2), _usage(2, 2)]


@pytest.mark.parametrize("echo", [False, True])
def test_stream_adds_up_to_the_plain_answer(make_client, echo):
    text = "né 😀 STOP later"
    body = {
        "prompt": ["x", "ü"],
        "n": 2,
        "seed": 3,
        "max_tokens": 40,
        "logprobs": 1,
        "echo": echo,
        "stop": "STOP",
    }
    client = make_client(FakeEngine(script=text.encode()))
    plain = client.post(PATH, body).json()["choices"]
    texts, logprobs, ends = [""] * 4, [None] * 4, [None] * 4
    for value in events(client.post(PATH, {**body, "stream": True}).text):
        [choice] = value["choices"]
        index = choice["index"]
        texts[index] += choice["text"]
        assert "�" not in choice["text"]
        assert "S" not in choice["text"]
        if logprobs[index] is None:
            logprobs[index] = choice["logprobs"]
        else:
            for name, values in choice["logprobs"].items():
                logprobs[index][name] += values
        if choice["finish_reason"]:
            ends[index] = {k: choice[k] for k in ("finish_reason", "digest", "seed")}
    assert texts == [choice["text"] for choice in plain]
    assert logprobs == [choice["logprobs"] for choice in plain]
    assert ends == [{k: choice[k] for k in ("finish_reason", "digest", "seed")} for choice in plain]
    assert plain[2]["text"] == ("ü" if echo else "") + "né 😀 "
    assert plain[2]["finish_reason"] == "stop"
    # Every token up to the stop string's last, and each at its place in the text.
    tokens = plain[3]["logprobs"]
    assert len(tokens["tokens"]) == len("né 😀 STOP".encode()) + (2 if echo else 0)
    assert tokens["text_offset"][-4:] == [len(plain[3]["text"]) + i for i in range(4)]


def test_cached_tokens_are_counted_once_a_prompt(make_client):
    client = make_client(FakeEngine(cached_tokens=3))
    body = {"prompt": ["abcd", "efgh"], "n": 3, "max_tokens": 1}
    assert client.post(PATH, body).json()["usage"] == _usage(8, 6, cached=6)


@pytest.mark.parametrize("stream", [False, True])
def test_answer_cut_off_by_a_shutdown_is_an_error(make_client, stream):
    class CutOff(FakeEngine):
        async def generate(self, *args, **options):
            async for output in super().generate(*args, **options):
                if output.completion_tokens == 2:
                    output.finish_reason, output.error = "abort", "the server is shutting down"
                yield output

    response = make_client(CutOff()).post(PATH, {"prompt": "a", "stream": stream})
    error = (events(response.text)[-1] if stream else response.json())["error"]
    assert response.status_code == (200 if stream else 503)
    assert (error["message"], error["code"]) == ("the server is shutting down", "draining")
