"""Tools of langchain's ``ChatOpenAI`` on a detinfer server: langchain_tools_client.py URL."""

from __future__ import annotations

import json
import sys
from typing import Literal
from urllib.request import urlopen

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

QUESTION = "Ann is 34 years old and lives in Rome. How warm is it there?"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    city: Literal["Paris", "Rome", "Oslo"]


@tool
def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
    """Tell the weather in a city."""
    return f"18 degrees in {city}"


@tool
def age_of(name: Literal["Ann", "Ben"]) -> int:
    """Tell how old somebody is."""
    return {"Ann": 34, "Ben": 7}[name]


def check_tools(llm: ChatOpenAI) -> None:
    """A forced call, streamed the same; what it gives goes back; then any tool, then none."""
    by_name = {one.name: one for one in (get_weather, age_of)}
    messages: list = [HumanMessage(QUESTION)]
    for choice in ("get_weather", "any"):
        bound = llm.bind_tools([*by_name.values()], tool_choice=choice, parallel_tool_calls=False)
        answer = bound.invoke(messages)
        [call] = answer.tool_calls
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        first, *rest = bound.stream(messages)
        for chunk in rest:
            first += chunk
        assert len(rest) > 4
        [streamed] = first.tool_calls
        assert (streamed["name"], streamed["args"]) == (call["name"], call["args"])
        result = by_name[call["name"]].invoke(call)
        assert isinstance(result, ToolMessage)
        messages += [answer, result]
    assert llm.bind_tools([get_weather], tool_choice="none").invoke(messages).content
    assert llm.bind_tools([get_weather]).invoke(messages) is not None


def check_structured(llm: ChatOpenAI) -> None:
    for method in ("function_calling", "json_schema"):
        chain = llm.with_structured_output(Person, method=method)
        found = chain.invoke(QUESTION)
        assert isinstance(found, Person)
        *_, last = chain.stream(QUESTION)
        assert last == found
        print(f"langchain-openai, {method}: {found!r}")
    # Any object; so small a model has to be kept from lists without an end.
    anything = llm.model_copy(update={"frequency_penalty": 2})
    anything = anything.with_structured_output(None, method="json_mode")
    found = anything.invoke(f"{QUESTION} Answer with JSON.")
    assert isinstance(found, dict)


def main() -> None:
    url = f"{sys.argv[1]}/v1"
    with urlopen(f"{url}/models") as models:
        model = json.load(models)["data"][0]["id"]
    options = {"base_url": url, "api_key": "none", "model": model, "max_retries": 0}
    options |= {"temperature": 0, "max_tokens": 300}
    check_tools(ChatOpenAI(**options))
    check_structured(ChatOpenAI(**options))
    print(f"langchain-openai: bind_tools and with_structured_output work with {model}")


if __name__ == "__main__":
    main()
