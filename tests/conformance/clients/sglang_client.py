"""SGLang's frontend language with a detinfer server: sglang_client.py URL."""

from __future__ import annotations

import sys

import sglang as sgl
from sglang.lang.choices import token_length_normalized, unconditional_likelihood_normalized

PROMPT = "The capital of France is"


@sgl.function
def continued(s, prompt, **sampling):
    s += prompt + sgl.gen("answer", temperature=0, **sampling)


@sgl.function
def chosen(s, prompt, choices, method):
    s += prompt + sgl.select("answer", choices=choices, choices_method=method)


@sgl.function
def twice(s):
    s += "1, 2, 3," + sgl.gen("first", max_tokens=4, temperature=0)
    s += sgl.gen("second", max_tokens=4, temperature=0)


def check_model(endpoint: sgl.RuntimeEndpoint) -> None:
    assert endpoint.get_model_name()
    assert endpoint.model_info["is_generation"] is True
    assert sgl.get_server_info()["system_fingerprint"]


def check_generation() -> str:
    state = continued.run(prompt=PROMPT, max_tokens=8)
    meta = state.get_meta_info("answer")
    assert "Paris" in state["answer"]
    assert meta["finish_reason"] == {"type": "length", "length": 8}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (5, 8)
    assert meta["deterministic"] is True
    assert len(meta["digest"]) == 64
    return state["answer"]


def check_stop_and_logprobs(answer: str) -> None:
    word = answer.split()[1]
    state = continued.run(
        prompt=PROMPT,
        max_tokens=8,
        stop=[word, "###"],
        return_logprob=True,
        logprob_start_len=0,
        top_logprobs_num=2,
        return_text_in_logprobs=True,
    )
    meta = state.get_meta_info("answer")
    assert state["answer"] == answer.split(word)[0]
    assert meta["finish_reason"] == {"type": "stop", "matched": word}
    assert "".join(text for _, _, text in meta["input_token_logprobs"]) == PROMPT
    assert [one[0] for one in meta["output_top_logprobs"]] == meta["output_token_logprobs"]


def check_stream(answer: str) -> None:
    """Each event has the text so far; the client takes it apart again."""
    state = continued.run(prompt=PROMPT, max_tokens=8, stream=True)
    pieces = list(state.text_iter("answer"))
    assert "".join(pieces) == answer
    assert len(pieces) > 1
    whole = continued.run(prompt=PROMPT, max_tokens=8).get_meta_info("answer")
    assert state.get_meta_info("answer")["digest"] == whole["digest"]


def check_batch(answer: str) -> None:
    prompts = [{"prompt": prompt, "max_tokens": 8} for prompt in (PROMPT, "Once upon a time", "A")]
    states = continued.run_batch(prompts, num_threads=3)
    assert states[0]["answer"] == answer
    assert all(state["answer"] for state in states)


def check_select() -> None:
    """By the log-probabilities of prompts that nothing is added to."""
    for method in (
        token_length_normalized,
        sgl.greedy_token_selection,
        unconditional_likelihood_normalized,
    ):
        state = chosen.run(prompt=PROMPT, choices=[" Paris", " banana", " 17"], method=method)
        assert state["answer"] == " Paris", method


def check_continued_state() -> None:
    state = twice.run()
    both = continued.run(prompt="1, 2, 3,", max_tokens=8)
    assert state["first"] + state["second"] == both["answer"]


def check_flush() -> None:
    def cached_tokens() -> int:
        state = continued.run(prompt="word " * 200, max_tokens=1)
        return state.get_meta_info("answer")["cached_tokens"]

    cached_tokens()
    assert cached_tokens() > 0
    sgl.flush_cache()
    assert cached_tokens() == 0


def main(url: str) -> None:
    endpoint = sgl.RuntimeEndpoint(url)
    sgl.set_default_backend(endpoint)
    check_model(endpoint)
    answer = check_generation()
    check_stop_and_logprobs(answer)
    check_stream(answer)
    check_batch(answer)
    check_select()
    check_continued_state()
    check_flush()
    print("sglang", sgl.__version__, "ok")


if __name__ == "__main__":
    main(sys.argv[1])
