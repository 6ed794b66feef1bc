"""langchain's OpenAI classes with a detinfer server: langchain_client.py URL."""

from __future__ import annotations

import json
import sys
from urllib.request import urlopen

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

QUESTIONS = ["Name a colour.", "Name a river in Egypt.", "What is two plus two?"]


def check_chat(llm: ChatOpenAI) -> None:
    answer = llm.invoke(QUESTIONS[0])
    assert answer.content
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.response_metadata["system_fingerprint"].startswith("detinfer-")
    assert answer.usage_metadata["output_tokens"] <= 16
    # Streamed, and among others, it is the same answer.
    chunks = list(llm.stream(QUESTIONS[0]))
    assert len(chunks) > 2
    assert "".join(chunk.content for chunk in chunks) == answer.content
    first, *_ = llm.batch(QUESTIONS)
    assert first.content == answer.content
    dialogue = [("system", "Be brief."), ("user", "Hi!"), ("assistant", "Hello."), ("user", "Bye!")]
    assert llm.invoke(dialogue).content


def check_chain(llm: ChatOpenAI) -> None:
    prompt = ChatPromptTemplate.from_messages([("user", "Name a {thing}.")])
    chain = prompt | llm | StrOutputParser()
    assert chain.invoke({"thing": "colour"}) == llm.invoke(QUESTIONS[0]).content


def check_completions(llm: OpenAI) -> None:
    answers = llm.batch(QUESTIONS)
    assert answers[0] == llm.invoke(QUESTIONS[0])
    assert "".join(llm.stream(QUESTIONS[0])) == answers[0]
    # Several prompts in one call.
    together = llm.generate(QUESTIONS)
    assert [one[0].text for one in together.generations] == answers
    assert together.llm_output["token_usage"]["completion_tokens"] <= 3 * 16


def check_embeddings(embeddings: OpenAIEmbeddings) -> None:
    documents = embeddings.embed_documents(QUESTIONS)
    assert len(documents) == len(QUESTIONS)
    assert embeddings.embed_query(QUESTIONS[1]) == documents[1]


def main() -> None:
    url = f"{sys.argv[1]}/v1"
    with urlopen(f"{url}/models") as models:
        model = json.load(models)["data"][0]["id"]
    options = {"base_url": url, "api_key": "none", "model": model, "max_retries": 0, "seed": 11}
    chat = ChatOpenAI(**options, temperature=0.7, max_tokens=16)
    check_chat(chat)
    check_chain(chat)
    check_completions(OpenAI(**options, temperature=0.7, max_tokens=16))
    # Else it sends ids of its own tokenizer, OpenAI's.
    names = ("base_url", "api_key", "model", "max_retries")
    own = {name: options[name] for name in names}
    check_embeddings(OpenAIEmbeddings(**own, check_embedding_ctx_length=False))
    print(f"langchain-openai: invoke, stream, batch and a chain agree with {model}")


if __name__ == "__main__":
    main()
