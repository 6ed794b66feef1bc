"""OpenAI's agents, which speak /v1/responses: openai_agents_client.py URL."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Literal
from urllib.request import urlopen

from agents import (
    Agent,
    AgentHooks,
    ModelSettings,
    OpenAIProvider,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

QUESTION = "How warm is it in Rome?"
# The agents take no answer that the most tokens end: a sentence is enough.
GREEDY = ModelSettings(temperature=0, max_tokens=200, extra_body={"stop": ["."]})
asked: list = []


@function_tool
def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
    """Tells the weather in a city."""
    asked.append(city)
    return f"18 degrees in {city}"


@function_tool
def add(a: Literal[1, 2, 3], b: Literal[4, 5, 6]) -> int:
    """Adds two numbers."""
    asked.append((a, b))
    return a + b


class Turns(AgentHooks):
    """What each turn is made to do after a tool has answered."""

    async def on_tool_end(self, context, agent, tool, result) -> None:
        choice = {"get_weather": "add", "add": "none"}[tool.name]
        agent.model_settings = GREEDY.resolve(ModelSettings(tool_choice=choice))


class Forecast(BaseModel):
    """A day's weather."""

    city: Literal["Paris", "Rome", "Oslo"]
    degrees: Literal[17, 18, 19]


async def check_answers(config: RunConfig) -> None:
    agent = Agent(name="Plain", instructions="Be brief.", model_settings=GREEDY)
    whole = await Runner.run(agent, QUESTION, run_config=config)
    assert whole.final_output
    stream = Runner.run_streamed(agent, QUESTION, run_config=config)
    deltas = [
        event.data.delta
        async for event in stream.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == stream.final_output == whole.final_output
    # The next turn: what the last one came to, handed back.
    more = [*whole.to_input_list(), {"role": "user", "content": "And in Oslo?"}]
    again = await Runner.run(agent, more, run_config=config)
    assert again.raw_responses[0].usage.input_tokens > whole.raw_responses[0].usage.total_tokens


async def check_tools(config: RunConfig) -> None:
    """Two calls that are forced, what each gives, and an answer: three turns, streamed and not."""

    def agent() -> Agent:
        forced = GREEDY.resolve(ModelSettings(tool_choice="get_weather"))
        return Agent(
            name="Tools",
            tools=[get_weather, add],
            model_settings=forced,
            hooks=Turns(),
            reset_tool_choice=False,
        )

    asked.clear()
    whole = await Runner.run(agent(), QUESTION, run_config=config)
    assert len(whole.raw_responses) == 3
    city, numbers = asked
    assert whole.final_output
    stream = Runner.run_streamed(agent(), QUESTION, run_config=config)
    kinds = [event.item.type async for event in stream.stream_events() if hasattr(event, "item")]
    assert kinds == [*["tool_call_item", "tool_call_output_item"] * 2, "message_output_item"]
    assert stream.final_output == whole.final_output
    assert asked == [city, numbers] * 2


async def check_types(config: RunConfig) -> None:
    agent = Agent(name="Typed", output_type=Forecast, model_settings=GREEDY)
    found = await Runner.run(agent, QUESTION, run_config=config)
    assert isinstance(found.final_output, Forecast)


async def main() -> None:
    url = f"{sys.argv[1]}/v1"
    with urlopen(f"{url}/models") as models:
        model = json.load(models)["data"][0]["id"]
    set_tracing_disabled(True)
    provider = OpenAIProvider(base_url=url, api_key="none", use_responses=True)
    config = RunConfig(model=model, model_provider=provider)
    checks = (check_answers, check_tools, check_types)
    for check in checks:
        await check(config)
    print(f"openai-agents: {len(checks)} checks passed with {model}")


if __name__ == "__main__":
    asyncio.run(main())
