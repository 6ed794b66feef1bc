"""What OpenAI's routes do with the fields of vLLM's requests that are built."""

from __future__ import annotations

import json

import pytest
from fake_engine import CHAT_TEMPLATE, INFO, FakeEngine, byte_tokenizer
from streams import events

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def _spell(*messages: tuple[str, str], end: str) -> list[int]:
    texts = [f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages]
    return byte_tokenizer().encode("".join(texts) + end)


def test_seed_minus_one_draws_one_and_tells_it(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    seeds = {
        client.post(COMPLETIONS, {"prompt": "a", "seed": -1}).json()["choices"][0]["seed"]
        for _ in range(2)
    }
    assert len(seeds) == 2
    assert {params.seed for params in engine.seen} == {None}


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, "hij"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, "hij"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "abc"),
        ({"truncate_prompt_tokens": 30}, "abcdefghij"),
        ({"truncate_prompt_tokens": -1}, "abcdefghij"),
        ({"truncation_side": "right"}, "abcdefghij"),
    ],
)
@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompt_is_cut_to_its_last_tokens(make_client, fields, kept, as_ids):
    engine, prompt = FakeEngine(), "abcdefghij"
    body = {"prompt": list(prompt.encode()) if as_ids else prompt, "echo": True, "logprobs": 0}
    answer = make_client(engine).post(COMPLETIONS, {**body, **fields, "max_tokens": 2}).json()
    assert engine.prompts == [list(kept.encode())]
    [choice] = answer["choices"]
    assert choice["text"][:-2] == kept
    assert choice["logprobs"]["text_offset"] == list(range(len(kept) + 2))
    assert answer["usage"]["prompt_tokens"] == len(kept)


@pytest.mark.parametrize(("given", "kept"), [({}, 255), ({"max_tokens": 56}, 200)])
def test_minus_one_keeps_what_leaves_room_to_answer(make_client, given, kept):
    engine = FakeEngine()
    client = make_client(engine)
    body = {"prompt": "x" * 100 + "y" * 200, "truncate_prompt_tokens": -1, **given}
    assert client.post(COMPLETIONS, body).status_code == 200
    assert engine.prompts == [list(body["prompt"].encode())[-kept:]]
    messages = [{"role": "user", "content": "z" * 300}]
    body = {"messages": messages, "truncate_prompt_tokens": -1, **given}
    assert client.post(CHAT, body).status_code == 200
    assert len(engine.prompts[1]) == kept


def test_add_special_tokens(make_client):
    from tokenizers.processors import TemplateProcessing

    engine = FakeEngine(chat_template=CHAT_TEMPLATE + "{# a tokenizer of its own, too #}")
    engine.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    client = make_client(engine)
    for flag, added in [({}, 1), ({"add_special_tokens": False}, 0)]:
        body = {"prompt": "ab", "echo": True, "logprobs": 0, "max_tokens": 1, **flag}
        [choice] = client.post(COMPLETIONS, body).json()["choices"]
        assert engine.prompts[-1] == [1] * added + [97, 98]
        assert choice["logprobs"]["text_offset"] == [0] * added + [0, 1, 2]
    for flag, count in [({}, 2), ({"add_special_tokens": True}, 3)]:
        client.post(CHAT, {"messages": HI, "max_tokens": 1, **flag})
        assert engine.prompts[-1].count(1) == count


def _prompt_logprobs(prompt: list[int], most: int) -> list:
    """As the fake engine has them: the prompt's own token is the likeliest, then the next ids."""
    texts = byte_tokenizer()

    def entry(token: int, place: int) -> dict:
        text = bytes([token]).decode("utf-8", "replace") if token > 2 else texts.decode([token])
        return {"logprob": -0.5 - place, "rank": place + 1, "decoded_token": text}

    return [
        None,
        *({str(t + i): entry(t + i, i) for i in range(max(1, most))} for t in prompt[1:]),
    ]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_prompt_logprobs_are_vllms(client, most):
    body = {"prompt": ["abc", "d"], "n": 2, "max_tokens": 1, "prompt_logprobs": most}
    choices = client.post(COMPLETIONS, body).json()["choices"]
    found = [choice["prompt_logprobs"] for choice in choices]
    assert found == [_prompt_logprobs(list(b"abc"), most)] * 2 + [[None]] * 2
    value = client.post(CHAT, {"messages": HI, "max_tokens": 1, "prompt_logprobs": most}).json()
    prompt = _spell(("user", "hi"), end="<|im_start|>assistant\n")
    assert value["prompt_logprobs"] == _prompt_logprobs(prompt, most)
    assert "prompt_logprobs" not in value["choices"][0]


def test_prompt_logprobs_beside_echo_each_have_their_own_number(client):
    body = {"prompt": "abc", "max_tokens": 1, "echo": True}
    for logprobs, most in [(0, 3), (3, 1)]:
        asked = {**body, "logprobs": logprobs, "prompt_logprobs": most}
        [choice] = client.post(COMPLETIONS, asked).json()["choices"]
        assert choice["prompt_logprobs"] == _prompt_logprobs(list(b"abc"), most)
        [alone] = client.post(COMPLETIONS, {**body, "logprobs": logprobs}).json()["choices"]
        assert choice["logprobs"]["top_logprobs"][:3] == alone["logprobs"]["top_logprobs"][:3]


def test_token_ids_of_prompt_and_answer(client):
    body = {"prompt": ["ab", "c"], "max_tokens": 3, "temperature": 0, "return_token_ids": True}
    plain = client.post(COMPLETIONS, body).json()["choices"]
    assert [choice["prompt_token_ids"] for choice in plain] == [[97, 98], [99]]
    assert [bytes(choice["token_ids"]).decode() for choice in plain] == [
        choice["text"] for choice in plain
    ]
    streamed: list[dict] = [{"token_ids": []} for _ in plain]
    for value in events(client.post(COMPLETIONS, {**body, "stream": True}).text):
        [choice] = value["choices"]
        known = streamed[choice["index"]]
        assert ("prompt_token_ids" in choice) == ("prompt_token_ids" not in known)
        known["prompt_token_ids"] = choice.get("prompt_token_ids", known.get("prompt_token_ids"))
        known["token_ids"] += choice["token_ids"]
    assert streamed == [
        {name: choice[name] for name in ("token_ids", "prompt_token_ids")} for choice in plain
    ]


def test_token_ids_of_a_chat(client):
    body = {"messages": HI, "max_tokens": 3, "temperature": 0, "return_token_ids": True, "n": 2}
    plain = client.post(CHAT, body).json()
    prompt = _spell(("user", "hi"), end="<|im_start|>assistant\n")
    assert plain["prompt_token_ids"] == prompt
    texts = [choice["message"]["content"] for choice in plain["choices"]]
    assert [bytes(choice["token_ids"]).decode() for choice in plain["choices"]] == texts
    first, *others = events(client.post(CHAT, {**body, "stream": True}).text)
    assert first["prompt_token_ids"] == prompt
    assert not any("prompt_token_ids" in value for value in others)
    ids: list[list[int]] = [[], []]
    for value in others:
        [choice] = value["choices"]
        ids[choice["index"]] += choice.get("token_ids", [])
    assert [bytes(one).decode() for one in ids] == texts


def test_no_token_is_lost_where_it_has_no_text(make_client):
    """Half a character, a special token, a scored prompt without an answer."""
    client = make_client(FakeEngine(script="é".encode() + b"\x02"))
    body = {"prompt": "a", "max_tokens": 3, "stream": True, "return_token_ids": True}
    values = events(client.post(COMPLETIONS, body).text)
    ids = [token for value in values for token in value["choices"][0]["token_ids"]]
    assert ids == [0xC3, 0xA9, 2]
    body |= {"max_tokens": 0, "echo": True, "stream": False}
    [choice] = client.post(COMPLETIONS, body).json()["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"], choice["text"]) == ([97], [], "a")


def test_tokens_are_named_by_their_ids(make_client):
    client = make_client(FakeEngine(script="é".encode()))
    body = {"max_tokens": 2, "return_tokens_as_token_ids": True}
    asked = {**body, "prompt": "a", "echo": True, "logprobs": 2}
    logprobs = client.post(COMPLETIONS, asked).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:97", "token_id:195", "token_id:169"]
    assert logprobs["top_logprobs"][1] == {"token_id:195": -0.5, "token_id:196": -1.5}
    asked = {**body, "messages": HI, "logprobs": True, "top_logprobs": 1}
    [choice] = client.post(CHAT, asked).json()["choices"]
    content = choice["logprobs"]["content"]
    assert [one["token"] for one in content] == ["token_id:195", "token_id:169"]
    assert content[0]["top_logprobs"][0]["token"] == "token_id:195"
    assert content[0]["bytes"] == [195]


@pytest.mark.parametrize("stream", [False, True])
def test_special_tokens_and_stop_strings_in_the_text(make_client, stream):
    client = make_client(FakeEngine(script=b"a\x01b STOP"))
    for fields, text in [
        ({}, "ab "),
        ({"include_stop_str_in_output": True}, "ab STOP"),
        ({"skip_special_tokens": False}, "a<|im_start|>b "),
    ]:
        body = {"prompt": "x", "stop": "STOP", "logprobs": 0, "stream": stream, **fields}
        response = client.post(COMPLETIONS, body)
        values = events(response.text) if stream else [response.json()]
        choices = [value["choices"][0] for value in values]
        assert "".join(choice["text"] for choice in choices) == text
        offsets = [
            at for one in choices if one["logprobs"] for at in one["logprobs"]["text_offset"]
        ]
        shown = 12 if "skip_special_tokens" in fields else 0
        assert offsets == [0, 1, *(1 + shown + i for i in range(6))]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_cache_salt_is_beside_the_keys(make_client, path):
    engine = FakeEngine()
    client = make_client(engine, api_keys=("k",))
    body = {"prompt": "a"} if path == COMPLETIONS else {"messages": HI}
    for salt in (None, "s", "key 0"):
        headers = {"authorization": "Bearer k"}
        client.post(path, {**body, "cache_salt": salt}, headers=headers)
    assert engine.salts == ["key 0", "key 0/s", "key 0/key 0"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_request_id_is_part_of_the_answers(make_client, path):
    client = make_client(FakeEngine())
    body = {"prompt": "a"} if path == COMPLETIONS else {"messages": HI}
    kind = "cmpl" if path == COMPLETIONS else "chatcmpl"
    body |= {"request_id": "mine", "n": 2, "max_tokens": 1}
    assert client.post(path, body).json()["id"] == f"{kind}-mine"
    values = events(client.post(path, {**body, "stream": True}).text)
    assert {value["id"] for value in values} == {f"{kind}-mine"}


def test_the_last_message_is_continued(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    begun = [*HI, {"role": "assistant", "content": "Sure,"}]
    for fields, spelled in [
        ({}, _spell(("user", "hi"), ("assistant", "Sure,"), end="<|im_start|>assistant\n")),
        (
            {"add_generation_prompt": False},
            _spell(("user", "hi"), ("assistant", "Sure,"), end=""),
        ),
        (
            {"continue_final_message": True},
            _spell(("user", "hi"), end="<|im_start|>assistant\nSure,"),
        ),
    ]:
        response = client.post(CHAT, {"messages": begun, "max_tokens": 1, **fields})
        assert response.status_code == 200
        assert engine.prompts[-1] == spelled
        tokens = client.post("/tokenize", {"messages": begun, **fields}).json()["tokens"]
        assert tokens == spelled
    body = {"messages": [{"role": "user", "content": ""}], "continue_final_message": True}
    assert client.post(CHAT, body).status_code == 200  # nothing of a message, too


@pytest.mark.parametrize("stream", [False, True])
def test_echo_of_a_chat_is_the_assistants_last_message(client, stream):
    begun = [*HI, {"role": "assistant", "content": [{"type": "text", "text": "Sure,"}]}]
    for messages, text in [(begun, "Sure,"), (HI, "")]:
        body = {"messages": messages, "max_tokens": 1, "temperature": 0, "stream": stream}
        answers = []
        for echo in (False, True):
            response = client.post(CHAT, {**body, "echo": echo})
            values = events(response.text) if stream else [response.json()]
            parts = [v["choices"][0]["delta" if stream else "message"] for v in values]
            answers.append("".join(part.get("content", "") for part in parts))
        assert answers[1] == text + answers[0]


REASONING = """\
{%- for message in messages %}{{ message.role[0] + ':' }}
{%- if message.reasoning_content %}{{ '(' + message.reasoning_content + ')' }}{% endif %}
{{- message.content + '|' }}{% endfor -%}
{{ reasoning_effort | default('-') }} {{ enable_thinking | default('-') }}"""


def test_reasoning_is_for_the_template(make_client):
    engine = FakeEngine(chat_template=REASONING)
    client = make_client(engine)
    history = [*HI, {"role": "assistant", "content": "yes"}]
    for given in ({"reasoning_content": "hm"}, {"reasoning": "hm"}, {}):
        body = {"messages": [HI[0], {**history[1], **given}], "max_tokens": 1}
        client.post(CHAT, body)
        spelled = "(hm)" if given else ""
        assert bytes(engine.prompts[-1]).decode() == f"u:hi|a:{spelled}yes|- -"
    for fields, end in [
        ({"reasoning_effort": "low"}, "low True"),
        ({"reasoning_effort": "none"}, "none False"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "none True",
        ),
    ]:
        client.post(CHAT, {"messages": HI, "max_tokens": 1, **fields})
        assert bytes(engine.prompts[-1]).decode() == f"u:hi|{end}"


def test_what_histories_have_beside_text(make_client):
    engine = FakeEngine()
    mark = {"type": "ephemeral"}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": mark}]},
        {"role": "user", "content": "a", "cache_control": mark},
        {"role": "assistant", "content": None, "tool_calls": [], "annotations": []},
        {"role": "assistant"},
        {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": None}]},
    ]
    response = make_client(engine).post(CHAT, {"messages": messages})
    assert response.status_code == 200
    spelled = [("system", "s"), ("user", "a"), ("assistant", ""), ("assistant", ""), ("user", "b")]
    assert engine.prompts == [_spell(*spelled, end="<|im_start|>assistant\n")]


def test_a_text_that_its_template_leaves_out_does_not_count(make_client):
    """Reasoning of former turns is long, and most templates drop it."""
    engine = FakeEngine()
    long = "x" * (INFO.max_model_len * 20)
    messages = [*HI, {"role": "assistant", "content": "a", "reasoning_content": long}, *HI]
    response = make_client(engine).post(CHAT, {"messages": messages, "max_tokens": 1})
    assert response.status_code == 200, json.dumps(response.json())[:300]
