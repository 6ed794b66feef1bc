"""``pydantic-ai`` on a detinfer server: pydantic_ai_client.py URL."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Literal
from urllib.request import urlopen

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

QUESTION = "Ann is 34 years old and lives in Rome. Who is she?"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    city: Literal["Paris", "Rome", "Oslo"]


class Anything(BaseModel):
    """Any JSON object, which is all that a prompted output asks the server for."""

    name: object = None


async def check(agent: Agent, kind: type[BaseModel]) -> None:
    """The same object again, and streamed."""
    found = (await agent.run(QUESTION)).output
    assert isinstance(found, kind)
    assert (await agent.run(QUESTION)).output == found
    async with agent.run_stream(QUESTION) as stream:
        assert await stream.get_output() == found
    print(f"pydantic-ai, {type(agent.output_type).__name__}: {found!r}")


async def check_tools(model: OpenAIChatModel) -> None:
    """A function tool beside the output's: every call is one of them, until the output's comes."""
    called = []
    agent = Agent(model, output_type=ToolOutput(Person), model_settings={"temperature": 0})

    @agent.tool_plain
    def age_of(name: Literal["Ann", "Ben"]) -> int:
        """Tells how old somebody is."""
        called.append(name)
        return 34

    found = (await agent.run(QUESTION)).output
    assert isinstance(found, Person)
    print(f"pydantic-ai, a tool: called for {called}, then {found!r}")


async def main() -> None:
    url = f"{sys.argv[1]}/v1"
    with urlopen(f"{url}/models") as models:
        name = json.load(models)["data"][0]["id"]
    model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key="none"))
    settings = {"temperature": 0, "max_tokens": 300}
    for output, kind in (
        (ToolOutput(Person), Person),
        (NativeOutput(Person), Person),
        (PromptedOutput(Anything), Anything),
    ):
        await check(Agent(model, output_type=output, model_settings=settings, retries=0), kind)
    await check_tools(model)


if __name__ == "__main__":
    asyncio.run(main())
