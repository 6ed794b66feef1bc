"""``pydantic-ai``'s own loop with two tools, a step each: pydantic_ai_loop_client.py URL."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Literal
from urllib.request import urlopen

from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

QUESTION = "How warm is it in Rome, and what is 3 plus 4?"
CHOICES = (["get_weather"], ["add"], "none")  # what each step is made to do
called: list[tuple] = []


def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
    """Tells the weather in a city."""
    called.append(("get_weather", city))
    return f"18 degrees in {city}"


def add(a: Literal[1, 2, 3], b: Literal[4, 5, 6]) -> int:
    """Adds two numbers."""
    called.append(("add", a, b))
    return a + b


def settings(run: RunContext) -> ModelSettings:
    return {"temperature": 0, "max_tokens": 48, "tool_choice": CHOICES[run.run_step - 1]}


def parts(messages: list[ModelMessage], kind: type) -> list:
    return [part for message in messages for part in message.parts if isinstance(part, kind)]


async def whole(agent: Agent) -> tuple[str, list[ModelMessage]]:
    run = await agent.run(QUESTION)
    return run.output, run.all_messages()


async def streamed(agent: Agent) -> tuple[str, list[ModelMessage]]:
    async with agent.run_stream(QUESTION) as run:
        deltas = [delta async for delta in run.stream_text(delta=True, debounce_by=None)]
        assert len(deltas) > 1
        return "".join(deltas), run.all_messages()


async def iterated(agent: Agent) -> tuple[str, list[ModelMessage]]:
    """Every node by hand; each step's own answer is streamed."""
    async with agent.iter(QUESTION) as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    assert len([event async for event in stream]) > 1
    return run.result.output, run.result.all_messages()


async def check(
    way: Callable[[Agent], Awaitable[tuple[str, list[ModelMessage]]]], agent: Agent
) -> tuple:
    """Run the loop; both tools ran once, in turn, with arguments that they took."""
    called.clear()
    output, messages = await way(agent)
    assert output
    (_, city), (_, a, b) = called
    assert [name for name, *_ in called] == ["get_weather", "add"]
    made, gave = parts(messages, ToolCallPart), parts(messages, ToolReturnPart)
    assert [one.args_as_dict() for one in made] == [{"city": city}, {"a": a, "b": b}]
    assert [one.content for one in gave] == [f"18 degrees in {city}", a + b]
    assert [one.tool_call_id for one in made] == [one.tool_call_id for one in gave]
    return output, tuple(called)


async def main() -> None:
    url = f"{sys.argv[1]}/v1"
    with urlopen(f"{url}/models") as models:
        name = json.load(models)["data"][0]["id"]
    provider = OpenAIProvider(base_url=url, api_key="none")
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        agent = Agent(kind(name, provider=provider), model_settings=settings, retries=0)
        agent.tool_plain(get_weather)
        agent.tool_plain(add)
        first, *others = [await check(way, agent) for way in (whole, whole, streamed, iterated)]
        assert others == [first] * 3
        print(f"pydantic-ai, {kind.__name__}, two tools: {first}")


if __name__ == "__main__":
    asyncio.run(main())
