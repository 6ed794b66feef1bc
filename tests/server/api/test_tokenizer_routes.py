from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
from fake_engine import CHAT_TEMPLATE, INFO, FakeEngine

from detinfer.server.api import tokenizer as routes_tokenizer
from detinfer.server.tokenizing import INLINE_SIZE

HI = [{"role": "user", "content": "hi"}]


def test_tokenize_gives_what_generating_takes(make_client):
    engine = FakeEngine()
    client = make_client(engine)
    value = client.post("/tokenize", {"prompt": "é<|im_end|>"}).json()
    assert value == {
        "tokens": [0xC3, 0xA9, 2],
        "count": 3,
        "max_model_len": 256,
        "token_strs": None,
    }
    client.generate({"prompt": "é<|im_end|>", "max_tokens": 1})
    tokens = client.post("/tokenize", {"messages": HI}).json()["tokens"]
    client.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1})
    assert engine.prompts == [value["tokens"], tokens]


def test_tokenize_options(client):
    body = {"prompt": "a é", "return_token_strs": True, "add_special_tokens": False}
    assert client.post("/tokenize", body).json()["token_strs"] == ["a", "Ġ", "Ã", "©"]
    closed = {"messages": HI, "add_generation_prompt": False}
    tokens = client.post("/tokenize", closed).json()["tokens"]
    text = client.post("/detokenize", {"tokens": tokens}).json()
    assert text == {"prompt": "<|im_start|>user\nhi<|im_end|>\n"}
    assert client.post("/tokenize", {"prompt": ""}).json()["tokens"] == []


def test_the_loop_is_left_alone_by_tokens_without_end(make_client, monkeypatch):
    engine = FakeEngine()
    client = make_client(engine)
    at_once: list[int] = []
    busy: list[str] = []

    def watched(name: str, work: Any) -> Any:
        def run(values: Any, *args: Any, **options: Any) -> Any:
            if hasattr(values, "__len__") and len(values) > INLINE_SIZE:
                if threading.current_thread() is threading.main_thread():
                    busy.append(name)
                at_once.append(len(values) if name in ("names", "writes") else 0)
            return work(values, *args, **options)

        return run

    tokenizer = copy.copy(engine.tokenizer)
    monkeypatch.setattr(engine, "tokenizer", tokenizer)
    for name, method in (("names", "convert_ids_to_tokens"), ("encodes", "encode")):
        setattr(tokenizer, method, watched(name, getattr(tokenizer, method)))
    monkeypatch.setattr(routes_tokenizer, "to_json", watched("writes", routes_tokenizer.to_json))
    text = "né 😀\n" * 10_000
    answer = client.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == list(text.encode())
    assert answer["count"] == len(answer["token_strs"]) == len(text.encode())
    assert answer["token_strs"] == engine.tokenizer.convert_ids_to_tokens(answer["tokens"])
    assert busy == ["names"]  # our own call, in the line above
    assert sorted(set(at_once[:-1])) == [0, routes_tokenizer._PIECE]


def test_long_texts_there_and_back(client):
    text = "né 😀\n" * 2000
    tokens = client.post("/tokenize", {"prompt": text}).json()["tokens"]
    assert tokens == list(text.encode())
    assert client.post("/detokenize", {"tokens": tokens}).json()["prompt"] == text


def test_add_special_tokens_is_the_tokenizers_own_doing(make_client):
    from tokenizers.processors import TemplateProcessing

    engine = FakeEngine(chat_template=CHAT_TEMPLATE + "{# with a BOS #}")  # a tokenizer of its own
    engine.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    client = make_client(engine)
    for flag, tokens in [({}, [1, 97]), ({"add_special_tokens": False}, [97])]:
        assert client.post("/tokenize", {"prompt": "a", **flag}).json()["tokens"] == tokens
    # The template writes every special token itself: none is doubled, unless asked for.
    for flag, count in [({}, 2), ({"add_special_tokens": True}, 3)]:
        assert client.post("/tokenize", {"messages": HI, **flag}).json()["tokens"].count(1) == count
    client.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1})
    body = {"prompt": "a", "max_tokens": 1, "echo": True, "logprobs": 0}
    choice = client.post("/v1/completions", body).json()["choices"][0]
    assert engine.prompts[0].count(1) == 2
    # The BOS is a token of the prompt, but not of its text.
    assert choice["text"][0] == "a"
    assert choice["logprobs"]["tokens"][:2] == ["<|im_start|>", "a"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1]


def test_info_has_what_clients_ask_for(client):
    assert client.get("/tokenizer_info").json() == {
        "tokenizer_class": type(FakeEngine().tokenizer).__name__,
        "chat_template": CHAT_TEMPLATE,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": INFO.max_model_len,
    }


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("/tokenize", {}, "prompt", "got neither of prompt and messages, expected one"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "prompt", "got both of prompt and messages"),
        ("/tokenize", {"prompt": ["a"]}, "prompt", "got a list, expected a string"),
        ("/tokenize", {"messages": []}, "messages", "got an empty list"),
        (
            "/tokenize",
            {"messages": HI, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
            "got true with add_generation_prompt = true, expected one",
        ),
        ("/tokenize", {"prompt": "a", "promt": "a"}, "promt", "did you mean prompt?"),
        ("/detokenize", {}, "tokens", "missing"),
        ("/detokenize", {"tokens": "a"}, "tokens", 'got "a", expected a list'),
        ("/detokenize", {"tokens": [5, 1.0]}, "tokens.1", "got 1.0, expected an integer"),
        ("/detokenize", {"tokens": [5, 256, -1]}, "tokens", "got token id 256, expected 0..255"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "got token id -1, expected 0..255"),
    ],
)
def test_bad_body_is_a_400_that_names_the_field(client, path, body, param, message):
    response = client.post(path, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert message in error["message"]


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_other_model_is_a_404(client, path):
    body = {"tokens": [5]} if path == "/detokenize" else {"prompt": "a"}
    assert client.post(path, {**body, "model": "fake-model"}).status_code == 200
    assert client.post(path, {**body, "model": "gpt-9"}).status_code == 404
