from __future__ import annotations

import pytest
from fake_engine import INFO, FakeEngine, byte_tokenizer
from streams import events

from detinfer.server.api.openai.chat_body import ChatCompletionRequest

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def _prompt(*messages: tuple[str, str], end: str = "assistant") -> list[int]:
    texts = [f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages]
    return byte_tokenizer().encode("".join(texts) + f"<|im_start|>{end}\n")


def _frame(value: dict) -> dict:
    """Without what differs from call to call."""
    assert value.pop("id").startswith("chatcmpl-")
    assert value.pop("created") > 1_600_000_000
    for choice in value["choices"]:
        if choice["finish_reason"] is not None:
            assert len(choice.pop("digest")) == 64
    return value


def _usage(prompt: int, completion: int) -> dict:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_answer_is_openais_object(client):
    response = client.post(PATH, {"messages": HI, "max_tokens": 2, "temperature": 0})
    assert response.headers["x-detinfer-digest"] == response.json()["choices"][0]["digest"]
    assert response.headers["x-detinfer-deterministic"] == "true"
    assert _frame(response.json()) == {
        "object": "chat.completion",
        "model": "fake-model",
        "system_fingerprint": INFO.system_fingerprint,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "no", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "seed": None,
                "deterministic": True,
            }
        ],
        "usage": _usage(len(_prompt(("user", "hi"))), 2),
    }


def test_messages_become_a_prompt_through_the_models_template_once(make_client):
    engine = FakeEngine()
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("é", "b")], "name": "n"},
        {"role": "assistant", "content": "", "tool_calls": None, "refusal": None, "audio": None},
        *HI,
    ]
    assert make_client(engine).post(PATH, {"messages": messages}).status_code == 200
    spelled = [("system", "be kind"), ("user", "é\nb"), ("assistant", ""), ("user", "hi")]
    assert engine.prompts == [_prompt(*spelled)]
    assert engine.prompts[0].count(1) == 5  # one begin token a message, and the answer's


def test_template_variables_are_passed_on(make_client):
    engine = FakeEngine()
    body = {"messages": HI, "chat_template_kwargs": {"bot": "model"}}
    make_client(engine).post(PATH, body)
    assert engine.prompts == [_prompt(("user", "hi"), end="model")]


def test_long_messages_are_rendered_alike(make_client):
    engine = FakeEngine()
    engine.info = type(INFO)(**{**vars(INFO), "max_model_len": 9000, "num_pages": 200})
    client = make_client(engine)
    client.post(PATH, {"messages": [{"role": "user", "content": "y" * 5000}], "max_tokens": 1})
    assert engine.prompts == [_prompt(("user", "y" * 5000))]


def test_max_tokens_is_what_is_left_unless_given_by_either_name(client):
    room = 256 - len(_prompt(("user", "hi")))
    for given, count in [
        ({}, room),
        ({"max_completion_tokens": None, "max_tokens": None}, room),
        ({"max_tokens": 3}, 3),
        ({"max_completion_tokens": 4}, 4),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 5),
    ]:
        usage = client.post(PATH, {"messages": HI, **given}).json()["usage"]
        assert usage["completion_tokens"] == count


def test_what_is_left_is_also_what_the_kv_cache_holds(make_client):
    engine = FakeEngine()
    engine.info = type(INFO)(**{**vars(INFO), "num_pages": 2})  # of 64 tokens
    usage = make_client(engine).post(PATH, {"messages": HI}).json()["usage"]
    assert usage["total_tokens"] == 128


def test_logprobs_name_tokens_with_their_bytes(make_client):
    client = make_client(FakeEngine(script="é".encode()))
    body = {"messages": HI, "max_tokens": 2, "logprobs": True, "top_logprobs": 1}
    for stream in (False, True):
        response = client.post(PATH, {**body, "stream": stream})
        values = events(response.text) if stream else [response.json()]
        parts = [choice["logprobs"] for value in values for choice in value["choices"]]
        assert [one for part in parts if part for one in part["content"]] == [
            {"token": "�", "bytes": [byte], "logprob": -0.5}
            | {"top_logprobs": [{"token": "�", "bytes": [byte], "logprob": -0.5}]}
            for byte in (0xC3, 0xA9)
        ]
    [choice] = client.post(PATH, {**body, "top_logprobs": None}).json()["choices"]
    assert [one["top_logprobs"] for one in choice["logprobs"]["content"]] == [[], []]


def test_chunks_are_openais_objects(client):
    body = {
        "messages": HI,
        "max_tokens": 2,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    frame = {
        "object": "chat.completion.chunk",
        "model": "fake-model",
        "system_fingerprint": INFO.system_fingerprint,
        "usage": None,
    }

    def chunk(delta: dict, reason: str | None = None, **end: object) -> dict:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**frame, "choices": [choice | end]}

    assert [_frame(value) for value in events(client.post(PATH, body).text)] == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "n"}),
        chunk({"content": "o"}),
        chunk({}, "length", seed=None, deterministic=True),
        {**frame, "choices": [], "usage": _usage(len(_prompt(("user", "hi"))), 2)},
    ]


def test_stream_of_n_choices_adds_up_to_the_plain_answer(make_client):
    client = make_client(FakeEngine(script="né 😀 STOP later".encode()))
    body = {"messages": HI, "n": 3, "seed": 9, "max_tokens": 30, "stop": ["STOP", "late"]}
    plain = client.post(PATH, body).json()
    texts, ends = [""] * 3, [None] * 3
    for value in events(client.post(PATH, {**body, "stream": True}).text):
        [choice] = value["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            ends[choice["index"]] = (choice["finish_reason"], choice["digest"], choice["seed"])
    assert texts == [choice["message"]["content"] for choice in plain["choices"]] == ["né 😀 "] * 3
    assert ends == [("stop", choice["digest"], choice["seed"]) for choice in plain["choices"]]
    assert len({choice["digest"] for choice in plain["choices"]}) == 3
    for choice in plain["choices"]:
        alone = {**body, "n": 1, "seed": choice["seed"]}
        [one] = client.post(PATH, alone).json()["choices"]
        assert one["digest"] == choice["digest"]


def test_special_tokens_end_the_answer_and_stay_out_of_it(make_client):
    engine = FakeEngine(script=b"ok\x00")
    [choice] = make_client(engine).post(PATH, {"messages": HI}).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ok", "stop")


def test_neutral_values_of_unbuilt_options_are_accepted(client):
    body = {
        "messages": HI,
        "max_tokens": 1,
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "modalities": ["text"],
        "service_tier": "auto",
        "reasoning_effort": None,
        "store": False,
        "metadata": {},
        "user": "u",
        "top_logprobs": 0,
        "continue_final_message": False,
    }
    assert client.post(PATH, body).status_code == 200


def test_null_is_the_default_of_every_field(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    nulls = dict.fromkeys(ChatCompletionRequest.model_fields)
    for body in ({"messages": HI}, {**nulls, "messages": HI}):
        assert client.post(PATH, body).status_code == 200
    assert engine.seen[0] == engine.seen[1]
    assert engine.seen[0].temperature == 1.0


def test_model_without_a_template_says_so(make_client):
    response = make_client(FakeEngine(chat_template=None)).post(PATH, {"messages": HI})
    assert response.status_code == 400
    assert "no chat template" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_salt_of_the_key_reaches_the_engine(make_client, stream):
    engine = FakeEngine()
    client = make_client(engine)

    async def salted(scope, receive, send):
        scope.setdefault("state", {})["cache_salt"] = "one key's"
        await app(scope, receive, send)

    app, client.app = client.app, salted
    client.post(PATH, {"messages": HI, "max_tokens": 1, "stream": stream})
    assert engine.salts == ["one key's"]
