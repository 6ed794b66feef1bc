"""The dialects of ``/generate`` over the real engine, with tokens guessed ahead and without."""

from __future__ import annotations

import pytest
from streams import events
from tiny_engine import TinyEngine

PROMPT = "abcabcabcabcabc"
LENGTH = 60
GREEDY = {"max_new_tokens": LENGTH, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def engines() -> dict[bool, TinyEngine]:
    return {speculation: TinyEngine(speculation=speculation) for speculation in (True, False)}


@pytest.fixture
def clients(make_client, engines):
    return {speculation: make_client(engine) for speculation, engine in engines.items()}


def test_events_of_tgi_do_not_depend_on_how_many_tokens_a_step_gave(clients, engines):
    parameters = {"max_new_tokens": LENGTH, "ignore_eos": True, "top_n_tokens": 2}
    body = {"inputs": PROMPT, "parameters": parameters}
    guessed, alone = (
        client.post("/generate_stream", body).text for client in (clients[True], clients[False])
    )
    assert (engines[True].most > 1, engines[False].most) == (True, 1)
    assert guessed == alone
    whole = clients[True].post("/generate", {**body, "parameters": {**parameters, "details": True}})
    tokens = [event["token"] for event in events(guessed, done=False)]
    assert whole.json()["details"]["tokens"] == tokens


def test_sglangs_events_do_and_their_ends_do_not(clients):
    body = {"text": PROMPT, "sampling_params": GREEDY, "return_logprob": True, "stream": True}
    body |= {"rid": "same", "logprob_start_len": 0, "top_logprobs_num": 2}
    guessed, alone = (
        events(client.generate(body).text) for client in (clients[True], clients[False])
    )
    assert len(guessed) < len(alone)  # the control: fewer events for as many tokens

    def end(values: list[dict]) -> dict:
        meta = values[-1]["meta_info"] | {"cached_tokens": 0}
        return values[-1] | {"meta_info": meta}

    assert end(guessed) == end(alone)
    assert end([clients[True].generate(body | {"stream": False}).json()]) == end(alone)


def test_an_answer_is_one_in_every_dialect(clients):
    flat = {"max_tokens": LENGTH, "ignore_eos": True, "temperature": 0}
    ours = clients[True].generate({"prompt": PROMPT, **flat}).json()
    sglang = clients[True].generate({"text": PROMPT, "sampling_params": GREEDY}).json()
    tgi = clients[True].generate({"inputs": PROMPT, "parameters": GREEDY}).json()
    assert ours["text"] == sglang["text"] == tgi["generated_text"]
    assert ours["digest"] == sglang["meta_info"]["digest"] == tgi["digest"]


def test_scoring_gives_the_floats_of_writing(clients):
    """As SGLang's clients choose among continuations."""
    written = (
        clients[True]
        .generate({"text": PROMPT, "sampling_params": GREEDY, "return_logprob": True})
        .json()
    )
    ids = [*PROMPT.encode(), *written["output_ids"]]
    body = {"input_ids": ids, "sampling_params": {"max_new_tokens": 0}, "return_logprob": True}
    scored = clients[False].generate(body).json()["meta_info"]["input_token_logprobs"]
    assert [one[1] for one in scored] == ids
    assert scored[-LENGTH:] == written["meta_info"]["output_token_logprobs"]
