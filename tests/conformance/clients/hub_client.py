"""``huggingface_hub.InferenceClient.text_generation`` with a detinfer server: hub_client.py URL."""

from __future__ import annotations

import sys

import huggingface_hub
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

PROMPT = "The capital of France is"
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 7, "max_new_tokens": 12}
NEUTRAL = {
    "best_of": 1,
    "decoder_input_details": False,
    "do_sample": False,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "return_full_text": False,
    "stop": [],
    "typical_p": 1.0,
    "watermark": False,
}


def check_text(client: InferenceClient) -> str:
    text = client.text_generation(PROMPT, max_new_tokens=8)
    assert "Paris" in text
    assert client.text_generation(PROMPT, max_new_tokens=8, **NEUTRAL) == text
    full = client.text_generation(PROMPT, max_new_tokens=8, return_full_text=True)
    assert full == PROMPT + text
    return text


def check_details(client: InferenceClient, text: str) -> str:
    output = client.text_generation(
        PROMPT, max_new_tokens=8, details=True, decoder_input_details=True, top_n_tokens=2
    )
    assert output.generated_text == text
    details = output.details
    assert (details.finish_reason, details.generated_tokens) == ("length", 8)
    assert "".join(token.text for token in details.tokens) == text
    assert "".join(token.text for token in details.prefill) == PROMPT
    assert [one.logprob is None for one in details.prefill] == [True] + [False] * 4
    # The client leaves lists of lists as they are.
    assert [top[0]["id"] for top in details.top_tokens] == [token.id for token in details.tokens]
    assert len(output.digest) == 64
    assert output.deterministic is True
    return output.digest


def check_streams(client: InferenceClient, text: str, digest: str) -> None:
    assert "".join(client.text_generation(PROMPT, max_new_tokens=8, stream=True)) == text
    *events, last = client.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True)
    assert "".join(event.token.text for event in (*events, last)) == text
    assert [event.index for event in (*events, last)] == list(range(1, 9))
    assert all(event.generated_text is None and event.details is None for event in events)
    assert (last.generated_text, last.details.finish_reason) == (text, "length")
    assert last.details.input_length == 5
    assert last.digest == digest


def check_stop(client: InferenceClient, text: str) -> None:
    word = text.split()[1]
    output = client.text_generation(PROMPT, max_new_tokens=8, stop=[word], details=True)
    assert output.generated_text == text.split(word)[0]
    assert output.details.finish_reason == "stop_sequence"


def check_sampling(client: InferenceClient) -> None:
    """The same seed gives the same bits, and the best of several answers can be had alone."""
    once, again = (client.text_generation(PROMPT, details=True, **SAMPLED) for _ in range(2))
    assert (once.generated_text, once.digest) == (again.generated_text, again.digest)
    assert once.details.seed == 7
    best = client.text_generation(
        PROMPT, details=True, best_of=3, temperature=0.8, max_new_tokens=12
    )
    others = best.details.best_of_sequences
    means = [
        sum(token.logprob for token in one.tokens) / len(one.tokens)
        for one in (best.details, *others)
    ]
    assert len(others) == 2
    assert means[0] == max(means)
    alone = {"temperature": 0.8, "max_new_tokens": 12, "seed": best.details.seed}
    assert client.text_generation(PROMPT, details=True, **alone).digest == best.digest


def check_chat(client: InferenceClient) -> None:
    """It names no model: it has an address."""
    ask = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "seed": 3}
    whole = client.chat_completion(**ask)
    assert whole.choices[0].message.content
    chunks = client.chat_completion(**ask, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content


def check_refusals(client: InferenceClient) -> None:
    for stream in (False, True):
        said = ""
        try:
            list(client.text_generation(PROMPT, typical_p=0.5, stream=stream))
        except ValidationError as error:
            said = str(error)
        assert "parameters.typical_p: got 0.5, not supported yet" in said


def main(url: str) -> None:
    client = InferenceClient(base_url=url)
    text = check_text(client)
    digest = check_details(client, text)
    check_streams(client, text, digest)
    check_stop(client, text)
    check_sampling(client)
    check_chat(client)
    check_refusals(client)
    print("huggingface_hub", huggingface_hub.__version__, "ok")


if __name__ == "__main__":
    main(sys.argv[1])
