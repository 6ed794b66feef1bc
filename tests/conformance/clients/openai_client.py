"""The ``openai`` SDK with a detinfer server: openai_client.py URL."""

from __future__ import annotations

import asyncio
import sys

from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

PROMPT = "The capital of France is"
MESSAGES = [{"role": "user", "content": "Name three colours of the rainbow."}]
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 7, "max_tokens": 24}


def check_models(client: OpenAI) -> str:
    model, *solvers = client.models.list().data
    for one in (model, *solvers):
        assert client.models.retrieve(one.id) == one
    return model.id


def check_completions(client: OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    [choice] = answer.choices
    assert answer.object == "text_completion"
    assert "Paris" in choice.text
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 8)
    assert answer.usage.total_tokens == 13
    # The default length is OpenAI's.
    assert client.completions.create(model=model, prompt=PROMPT).usage.completion_tokens <= 16


def check_same_seed_same_bits(client: OpenAI, model: str) -> None:
    """Alone or among others, a seed gives the same text, digest and fingerprint."""
    once, twice = (
        client.completions.create(model=model, prompt=prompt, **SAMPLED)
        for prompt in (PROMPT, ["Once upon a time", PROMPT, "def main():"])
    )
    first, [_, second, _] = once.choices[0], twice.choices
    assert (first.text, first.digest) == (second.text, second.digest)
    assert once.system_fingerprint == twice.system_fingerprint
    other = client.completions.create(model=model, prompt=PROMPT, **{**SAMPLED, "seed": 8})
    assert other.choices[0].digest != first.digest


def check_n(client: OpenAI, model: str) -> None:
    """Choices come prompt by prompt, and each can be had again alone, by the seed it reports."""
    prompts = [PROMPT, "Once upon a time"]
    answer = client.completions.create(model=model, prompt=prompts, n=2, **SAMPLED)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.digest for choice in answer.choices}) == 4
    for choice in answer.choices:
        alone = {**SAMPLED, "prompt": prompts[choice.index // 2], "seed": choice.seed}
        [again] = client.completions.create(model=model, **alone).choices
        assert (again.text, again.digest) == (choice.text, choice.digest)


def check_stop(client: OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
    word = whole.choices[0].text.split()[2]
    cut = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=24, temperature=0, stop=["###", word]
    )
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].text == whole.choices[0].text.split(word)[0]


def check_logprobs_and_echo(client: OpenAI, model: str) -> None:
    """Scoring a text gives the very floats that writing it gave."""
    written = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=3
    ).choices[0]
    assert written.logprobs.token_logprobs == [
        max(top.values()) for top in written.logprobs.top_logprobs
    ]
    scored = client.completions.create(
        model=model, prompt=PROMPT + written.text, max_tokens=0, echo=True, logprobs=3
    ).choices[0]
    assert scored.text == PROMPT + written.text
    assert scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[-8:] == written.logprobs.token_logprobs
    assert "".join(scored.logprobs.tokens) == scored.text
    for token, start in zip(scored.logprobs.tokens, scored.logprobs.text_offset, strict=True):
        assert scored.text.startswith(token, start)


def check_logit_bias_and_penalties(client: OpenAI, model: str) -> None:
    greedy = {"model": model, "prompt": "one one one one", "max_tokens": 16, "temperature": 0}
    plain = client.completions.create(**greedy)
    penalised = client.completions.create(**greedy, presence_penalty=2, frequency_penalty=2)
    assert penalised.choices[0].text != plain.choices[0].text
    biased = client.completions.create(**greedy, logit_bias={"123": 100}, logprobs=0)
    assert len(set(biased.choices[0].logprobs.tokens)) == 1


def check_completion_stream(client: OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt=PROMPT, **SAMPLED)
    *chunks, last = client.completions.create(
        model=model, prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **SAMPLED
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices[0].digest == whole.choices[0].digest
    assert len({chunk.id for chunk in (*chunks, last)}) == 1
    assert last.choices == []
    assert last.usage.total_tokens == whole.usage.total_tokens


def check_chat(client: OpenAI, model: str) -> None:
    ask = {"model": model, "messages": MESSAGES, "temperature": 0.7, "seed": 3}
    whole = client.chat.completions.create(
        **ask, max_completion_tokens=24, logprobs=True, top_logprobs=2
    )
    [choice] = whole.choices
    assert whole.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content
    for token in choice.logprobs.content:
        assert bytes(token.bytes).decode("utf-8", "replace") == token.token
        assert token.logprob <= token.top_logprobs[0].logprob
        assert len(token.top_logprobs) == 2
    # The older name of the limit, and no log-probabilities, are the same answer.
    older = client.chat.completions.create(**ask, max_tokens=24)
    assert older.choices[0].message.content == choice.message.content
    assert older.choices[0].digest == choice.digest


def check_chat_stream(client: OpenAI, model: str) -> None:
    ask = {"model": model, "messages": MESSAGES, "n": 2, **SAMPLED}
    whole = client.chat.completions.create(**ask)
    *chunks, last = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    for choice in whole.choices:
        own = [one.choices[0] for one in chunks if one.choices[0].index == choice.index]
        assert own[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in own) == choice.message.content
        assert own[-1].finish_reason == choice.finish_reason
        assert own[-1].digest == choice.digest
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    # The SDK's own accumulator.
    with client.chat.completions.stream(model=model, messages=MESSAGES, **SAMPLED) as stream:
        [done] = [one for one in stream if one.type == "content.done"]
    assert done.content == whole.choices[0].message.content


def check_extensions_and_headers(client: OpenAI, model: str) -> None:
    ask = {"model": model, "prompt": PROMPT, "max_tokens": 4}
    for deterministic in (True, False):
        raw = client.completions.with_raw_response.create(
            **ask, extra_body={"deterministic": deterministic, "top_k": 1, "ignore_eos": True}
        )
        [choice] = raw.parse().choices
        assert raw.headers["x-detinfer-deterministic"] == str(deterministic).lower()
        assert choice.deterministic is deterministic
        assert raw.headers["x-detinfer-digest"] == choice.digest
        assert raw.headers["x-request-id"]
    greedy = client.completions.create(**ask, temperature=0).choices[0].text
    top_1 = client.completions.create(**ask, extra_body={"top_k": 1}).choices[0].text
    assert top_1 == greedy
    raw = client.completions.with_raw_response.create(
        **ask, extra_headers={"x-request-id": "my-own-id"}
    )
    assert raw.headers["x-request-id"] == "my-own-id"
    assert raw.parse()._request_id == "my-own-id"


def check_fields_of_vllm(client: OpenAI, model: str) -> None:
    ask = {"model": model, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    shown = {"return_token_ids": True, "prompt_logprobs": 1, "skip_special_tokens": False}
    neutral = {"priority": 0, "guided_json": None, "mm_processor_kwargs": None, "seed": -1}
    [choice] = client.completions.create(**ask, logprobs=1, extra_body=shown | neutral).choices
    assert len(choice.prompt_token_ids) == len(choice.prompt_logprobs) == 5
    # The text's own tokens, scored: the floats of its generation.
    whole = [*choice.prompt_token_ids, *choice.token_ids]
    scored = client.completions.create(**{**ask, "prompt": whole}, extra_body=shown).choices[0]
    found = [
        entry[str(token)]["logprob"]
        for token, entry in zip(whole[1:], scored.prompt_logprobs[1:], strict=True)
    ]
    assert found[4:] == choice.logprobs.token_logprobs
    cut = client.completions.create(**ask, extra_body={"truncate_prompt_tokens": 3})
    assert cut.usage.prompt_tokens == 3
    begun = [*MESSAGES, {"role": "assistant", "content": "Red,"}]
    go_on = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
    answer = client.chat.completions.create(
        model=model, messages=begun, max_tokens=6, temperature=0, extra_body=go_on
    )
    assert answer.choices[0].message.content.startswith("Red, ")


def check_receipts(client: OpenAI, model: str) -> None:
    """Answers with receipts are read as ever; each receipt is the route's own to verify."""
    root = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))
    ask = {"model": model, "messages": MESSAGES, "n": 2, **SAMPLED}
    plain = client.chat.completions.create(**ask)
    proven = client.chat.completions.create(**ask, extra_body={"receipt": True})
    chunks = list(client.chat.completions.create(**ask, stream=True, extra_body={"receipt": True}))
    for choice, alike in zip(plain.choices, proven.choices, strict=True):
        assert choice.message == alike.message
        own = [one.choices[0] for one in chunks if one.choices[0].index == choice.index]
        assert own[-1].receipt == alike.receipt
        assert not any(hasattr(one, "receipt") for one in own[:-1])
        assert alike.receipt["answer"]["digest"] == choice.digest
        verdict = root.post("/verify", body=alike.receipt, cast_to=object)
        assert verdict["match"]
    [completed] = client.completions.create(
        model=model, prompt=PROMPT, **SAMPLED, extra_body={"receipt": True}
    ).choices
    assert completed.receipt["answer"]["text"] == completed.text


def check_embeddings(client: OpenAI, model: str) -> None:
    """The SDK asks for base64 unless told; alone or among others, a text has one vector."""
    texts = [PROMPT, "The capital of Italy is", "def main():"]
    answer = client.embeddings.create(model=model, input=texts)
    assert (answer.object, answer.model, answer.usage.prompt_tokens > 10) == ("list", model, True)
    assert [item.index for item in answer.data] == [0, 1, 2]
    first, second, third = (item.embedding for item in answer.data)
    assert all(isinstance(number, float) for number in first)
    assert abs(sum(number * number for number in first) - 1) < 1e-5
    [plain] = client.embeddings.create(
        model=model, input=PROMPT, encoding_format="float", user="me"
    ).data
    assert (plain.embedding, plain.digest) == (first, answer.data[0].digest)
    near = sum(a * b for a, b in zip(first, second, strict=True))
    assert near > sum(a * b for a, b in zip(first, third, strict=True))
    short = client.embeddings.create(model=model, input=[[1, 2, 3]], dimensions=16)
    assert len(short.data[0].embedding) == 16


EVENTS = [
    "response.created", "response.in_progress", "response.output_item.added",
    "response.content_part.added", "response.output_text.delta", "response.output_text.done",
    "response.content_part.done", "response.output_item.done", "response.completed",
]  # fmt: skip


def check_responses(client: OpenAI, model: str) -> None:
    """A response is the chat's answer in other words, whole, streamed, parsed or by the helper."""
    question = MESSAGES[0]["content"]
    ask = {"model": model, "temperature": 0, "max_output_tokens": 200, "store": True}
    whole = client.responses.create(input=question, **ask)
    chat = client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=200
    )
    assert whole.output_text == chat.choices[0].message.content
    assert whole.digest == chat.choices[0].digest
    assert (whole.status, whole.error, whole.store) == ("completed", None, False)
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    found = list(client.responses.create(input=question, stream=True, **ask))
    assert list(dict.fromkeys(one.type for one in found)) == EVENTS
    assert [one.sequence_number for one in found] == list(range(len(found)))
    deltas = [one.delta for one in found if one.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert found[-1].response.digest == whole.digest
    with client.responses.stream(input=question, **ask) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == whole.output_text
    # The next turn: its own output handed back, under other instructions.
    history = [{"role": "user", "content": question}, *whole.output]
    history.append({"role": "user", "content": "And two more?"})
    cut = client.responses.create(
        model=model, input=history, instructions="Be brief.", temperature=0, max_output_tokens=3
    )
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert cut.usage.input_tokens > whole.usage.total_tokens

    class Colour(BaseModel):
        name: str
        warm: bool

    parsed = client.responses.parse(
        input="Describe a colour as JSON.", text_format=Colour, **ask
    ).output_parsed
    assert isinstance(parsed, Colour)


async def check_async(url: str, client: OpenAI, model: str) -> None:
    """Sixteen at once, half of them streaming, are each what they are alone."""
    prompts = [f"{PROMPT} Paris. The number {i} is" for i in range(8)]
    alone = [client.completions.create(model=model, prompt=one, **SAMPLED) for one in prompts]
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as anew:

        async def whole(prompt: str) -> tuple[str, str]:
            answer = await anew.completions.create(model=model, prompt=prompt, **SAMPLED)
            return answer.choices[0].text, answer.choices[0].digest

        async def streamed(prompt: str) -> tuple[str, str]:
            stream = await anew.completions.create(
                model=model, prompt=prompt, stream=True, **SAMPLED
            )
            choices = [chunk.choices[0] async for chunk in stream]
            return "".join(choice.text for choice in choices), choices[-1].digest

        answers = await asyncio.gather(*map(whole, prompts), *map(streamed, prompts))
        chat = await anew.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4)
        assert chat.choices[0].message.content is not None
    expected = [(one.choices[0].text, one.choices[0].digest) for one in alone]
    assert answers == expected * 2


def main() -> None:
    url = f"{sys.argv[1]}/v1"
    # Retries are off so that no failure hides; the key is not looked at by a server without keys.
    client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    model = check_models(client)
    checks = [
        check_completions,
        check_same_seed_same_bits,
        check_n,
        check_stop,
        check_logprobs_and_echo,
        check_logit_bias_and_penalties,
        check_completion_stream,
        check_chat,
        check_chat_stream,
        check_extensions_and_headers,
        check_fields_of_vllm,
        check_receipts,
        check_embeddings,
        check_responses,
    ]
    for check in checks:
        check(client, model)
    asyncio.run(check_async(url, client, model))
    print(f"openai SDK: {len(checks) + 2} checks passed with {model}")


if __name__ == "__main__":
    main()
