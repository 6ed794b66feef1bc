"""OpenAI's routes around the real engine and a tiny real model."""

from __future__ import annotations

import pytest
from tiny_engine import TinyEngine

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 2


@pytest.fixture(scope="module")
def engine():
    return TinyEngine()


@pytest.fixture
def client(make_client, engine):
    return make_client(engine)


def test_each_choice_alone_with_its_reported_seed_is_the_same_answer(client):
    body = {"prompt": ["Once", "ab"], "n": 3, "max_tokens": 12, "ignore_eos": True}
    choices = client.post(COMPLETIONS, body).json()["choices"]
    assert len({choice["digest"] for choice in choices}) == 6
    for i, choice in enumerate(choices):
        alone = {**body, "n": 1, "prompt": body["prompt"][i // 3], "seed": choice["seed"]}
        [one] = client.post(COMPLETIONS, alone).json()["choices"]
        assert (one["digest"], one["text"]) == (choice["digest"], choice["text"])


def test_chat_choices_too(client):
    messages = [{"role": "user", "content": "hi"}]
    body = {"messages": messages, "n": 2, "seed": 5, "max_tokens": 8}
    for choice in client.post(CHAT, body).json()["choices"]:
        [one] = client.post(CHAT, {**body, "n": 1, "seed": choice["seed"]}).json()["choices"]
        assert one["digest"] == choice["digest"]


def test_echoed_logprobs_are_the_very_floats_that_generating_gave(client):
    ids = list(TEXT.encode())
    body = {"prompt": ids, "max_tokens": 20, "temperature": 0, "logprobs": 3, "ignore_eos": True}
    [written] = client.post(COMPLETIONS, body).json()["choices"]
    answer = client.post(
        "/generate", {"input_ids": ids, "max_tokens": 20, "ignore_eos": True}
    ).json()["output_ids"]
    scored_body = {**body, "prompt": [ids + answer, ids[:70]], "max_tokens": 1, "echo": True}
    scored = client.post(COMPLETIONS, scored_body).json()["choices"][0]["logprobs"]
    own = written["logprobs"]
    span = slice(len(ids), len(ids) + 20)
    assert scored["token_logprobs"][span] == own["token_logprobs"]
    assert scored["top_logprobs"][span] == own["top_logprobs"]
    # Greedy tokens are the maximum, exactly: what lm-eval asks.
    tops = [max(top.values()) for top in scored["top_logprobs"][span]]
    assert scored["token_logprobs"][span] == tops
    # And the prompt's own are not all so.
    assert any(
        one < max(top.values())
        for one, top in zip(
            scored["token_logprobs"][1 : len(ids)],
            scored["top_logprobs"][1 : len(ids)],
            strict=True,
        )
    )


def test_lm_evals_request_gives_one_answer_at_any_batch_size(client):
    prompts = [list(TEXT[i : i + 40 + i].encode()) for i in range(8)]
    body = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    together = client.post(COMPLETIONS, {**body, "prompt": prompts}).json()["choices"]
    for prompt, choice in zip(prompts, together, strict=True):
        [one] = client.post(COMPLETIONS, {**body, "prompt": [prompt]}).json()["choices"]
        assert one["logprobs"] == choice["logprobs"]
        assert len(one["logprobs"]["tokens"]) == len(prompt) + 1


def test_prompt_logprobs_are_the_floats_of_echo_and_of_generation(client):
    ids = list(TEXT.encode())
    body = {"prompt": ids, "temperature": 0, "ignore_eos": True}
    asked = {**body, "max_tokens": 20, "logprobs": 3, "return_token_ids": True}
    [written] = client.post(COMPLETIONS, asked).json()["choices"]
    whole = ids + written["token_ids"]
    asked = {
        **body,
        "prompt": whole,
        "max_tokens": 1,
        "prompt_logprobs": 3,
        "return_token_ids": True,
    }
    [scored] = client.post(COMPLETIONS, asked).json()["choices"]
    asked = {**body, "prompt": whole, "max_tokens": 0, "echo": True, "logprobs": 3}
    [echoed] = client.post(COMPLETIONS, asked).json()["choices"]
    entries = scored["prompt_logprobs"]
    assert (scored["prompt_token_ids"], entries[0]) == (whole, None)
    own = [entry[str(token)] for token, entry in zip(whole[1:], entries[1:], strict=True)]
    assert [one["logprob"] for one in own] == echoed["logprobs"]["token_logprobs"][1:]
    assert [one["logprob"] for one in own][len(ids) - 1 :] == written["logprobs"]["token_logprobs"]
    # The answer was greedy, the prompt was not.
    assert {one["rank"] for one in own[len(ids) - 1 :]} == {1}
    assert len({one["rank"] for one in own}) > 3
    for entry in entries[1:]:
        first, *others = entry.values()
        ranks = sorted(one["rank"] for one in (first, *others))
        assert ranks[:3] == [1, 2, 3]
        assert len(ranks) == 3 + (first["rank"] > 3)
        by_rank = sorted(entry.values(), key=lambda one: one["rank"])
        logprobs = [one["logprob"] for one in by_rank]
        assert logprobs == sorted(logprobs, reverse=True)


def test_top_p_zero_is_the_likeliest_token_at_any_temperature(client):
    body = {"prompt": TEXT, "max_tokens": 12, "ignore_eos": True}
    [greedy] = client.post(COMPLETIONS, {**body, "temperature": 0}).json()["choices"]
    for given in ({"top_p": 0, "temperature": 2.0}, {"top_p": 0}):
        [choice] = client.post(COMPLETIONS, {**body, **given}).json()["choices"]
        assert (choice["digest"], choice["text"]) == (greedy["digest"], greedy["text"])
    [sampled] = client.post(COMPLETIONS, {**body, "temperature": 2.0, "seed": 1}).json()["choices"]
    assert sampled["digest"] != greedy["digest"]


def test_what_is_shown_does_not_move_a_digest(client):
    body = {"prompt": TEXT, "max_tokens": 12, "temperature": 0}
    shown = {"skip_special_tokens": False, "include_stop_str_in_output": True, "cache_salt": "s"}
    shown |= {"return_token_ids": True, "prompt_logprobs": 1}
    digests = {
        client.post(COMPLETIONS, given).json()["choices"][0]["digest"]
        for given in (body, body | shown)
    }
    assert len(digests) == 1
