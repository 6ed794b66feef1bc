"""The ``text-generation`` client with a detinfer server: tgi_client.py URL."""

from __future__ import annotations

import asyncio
import re
import sys

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError
from text_generation.types import Grammar, GrammarType, Message

PROMPT = "The capital of France is"


def check_generate(client: Client) -> str:
    """It always sends ``do_sample``, false unless given, and asks for details."""
    answer = client.generate(PROMPT, max_new_tokens=8, decoder_input_details=True)
    assert "Paris" in answer.generated_text
    details = answer.details
    assert (details.finish_reason.value, details.generated_tokens) == ("length", 8)
    assert "".join(token.text for token in details.tokens) == answer.generated_text
    assert "".join(token.text for token in details.prefill) == PROMPT
    assert details.seed is None
    word = answer.generated_text.split()[1]
    cut = client.generate(PROMPT, max_new_tokens=8, stop_sequences=[word])
    assert cut.generated_text == answer.generated_text.split(word)[0]
    assert cut.details.finish_reason.value == "stop_sequence"
    tail = client.generate(f"Once upon a time. {PROMPT}", truncate=5, max_new_tokens=8)
    assert tail == client.generate(f" {PROMPT}", max_new_tokens=8)
    return answer.generated_text


def check_stream(client: Client, text: str) -> None:
    *events, last = client.generate_stream(PROMPT, max_new_tokens=8, top_n_tokens=1)
    shown = [event.token.text for event in (*events, last) if not event.token.special]
    assert "".join(shown) == last.generated_text == text
    assert all(event.top_tokens[0].id == event.token.id for event in (*events, last))
    assert (last.details.finish_reason.value, last.details.generated_tokens) == ("length", 8)


def check_sampling(client: Client) -> None:
    for how in ({"do_sample": True}, {"temperature": 0.7}, {"top_p": 0.9}):
        once, again = (client.generate(PROMPT, seed=7, max_new_tokens=12, **how) for _ in range(2))
        assert once == again
        assert once.details.seed == 7
        assert client.generate(PROMPT, max_new_tokens=2, **how).details.seed is not None
    best = client.generate(PROMPT, do_sample=True, best_of=2, max_new_tokens=4)
    assert len(best.details.best_of_sequences) == 1


def check_chat(client: Client) -> None:
    answer = client.chat([Message(role="user", content="Hello")], max_tokens=8, seed=3)
    assert answer.choices[0].message.content
    assert answer.system_fingerprint


def check_grammar(client: Client) -> None:
    grammar = Grammar(type=GrammarType.Regex, value="[0-9]{3}")
    answer = client.generate(PROMPT, grammar=grammar, max_new_tokens=8)
    assert re.fullmatch("[0-9]{3}", answer.generated_text)
    parts = client.generate_stream(PROMPT, grammar=grammar, max_new_tokens=8)
    assert "".join(event.token.text for event in parts) == answer.generated_text


def check_refusals(client: Client) -> None:
    grammar = Grammar(type=GrammarType.Regex, value="(")
    for ask in (client.generate, lambda *args, **more: list(client.generate_stream(*args, **more))):
        said = ""
        try:
            ask(PROMPT, grammar=grammar)
        except ValidationError as error:
            said = str(error)
        assert "parameters.grammar: " in said


async def check_async(client: AsyncClient, text: str) -> None:
    answers = await asyncio.gather(*(client.generate(PROMPT, max_new_tokens=8) for _ in range(3)))
    assert [answer.generated_text for answer in answers] == [text] * 3
    parts = [event.token.text async for event in client.generate_stream(PROMPT, max_new_tokens=8)]
    assert "".join(parts) == text


def main(url: str) -> None:
    client = Client(url, timeout=60)
    text = check_generate(client)
    check_stream(client, text)
    check_sampling(client)
    check_chat(client)
    check_grammar(client)
    check_refusals(client)
    asyncio.run(check_async(AsyncClient(url, timeout=60), text))
    print("text-generation ok")


if __name__ == "__main__":
    main(sys.argv[1])
