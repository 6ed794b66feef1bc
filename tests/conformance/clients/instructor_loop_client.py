"""``instructor``'s loop of actions, two tools and an answer: instructor_loop_client.py URL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union

import instructor
from instructor import Instructor, Mode
from openai import OpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field

QUESTION = {"role": "user", "content": "How warm is it in Rome, and what is 3 plus 4?"}


class GetWeather(BaseModel):
    """Tells the weather in a city."""

    city: Literal["Paris", "Rome", "Oslo"]

    def run(self) -> str:
        return f"18 degrees in {self.city}"


class Add(BaseModel):
    """Adds two numbers."""

    a: int = Field(ge=0, le=9)
    b: int = Field(ge=0, le=9)

    def run(self) -> str:
        return str(self.a + self.b)


class Answer(BaseModel):
    """Answers the question."""

    text: str = Field(min_length=1, max_length=40)


Kinds = list[type[BaseModel]]


def either(kinds: Kinds) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007 (instructor does not take what A | B is)


def one_of(client: Instructor, kinds: Kinds, ask: dict) -> BaseModel:
    return client.create(response_model=either(kinds), **ask)


def parallel(client: Instructor, kinds: Kinds, ask: dict) -> BaseModel:
    """Every tool is offered; this mode itself would leave it to the model which are called."""
    choice = {"type": "function", "function": {"name": kinds[0].__name__}}
    every = Iterable[GetWeather | Add | Answer]
    [action] = client.create(response_model=every, extra_body={"tool_choice": choice}, **ask)
    return action


def iterable(client: Instructor, kinds: Kinds, ask: dict) -> BaseModel:
    """Stream a list; it goes on for as long as it may, and its first counts."""
    first, *_ = client.create_iterable(response_model=either(kinds), **ask)
    return first


def partial(client: Instructor, kinds: Kinds, ask: dict) -> BaseModel:
    parts = list(client.create_partial(response_model=kinds[0], **ask))
    assert len(parts) > 1
    return kinds[0].model_validate(parts[-1].model_dump())


def messages(action: BaseModel, answer: Any, result: str) -> list[dict]:
    """What goes back: a call as it was made, or, where there is none that it can take, text."""
    if isinstance(answer, ChatCompletion):
        message = answer.choices[0].message
        [call] = message.tool_calls
        told = {"role": "tool", "tool_call_id": call.id, "content": result}
        return [message.to_dict(), told]
    said = {"role": "assistant", "content": action.model_dump_json()}
    return [said, {"role": "user", "content": result}]


def loop(client: Instructor, way: Callable[..., BaseModel], ask: dict) -> list[BaseModel]:
    """Run each tool once, in the order that the model has them in, then let it answer."""
    seen: list[Any] = []
    client.on("completion:response", seen.append)
    history, left, done = [QUESTION], [GetWeather, Add], []
    while left:
        action = way(client, left, {**ask, "messages": history})
        [kind] = [kind for kind in left if isinstance(action, kind)]
        left.remove(kind)
        history = [*history, *messages(action, seen[-1], action.run())]
        done.append(action)
    answer = way(client, [Answer], {**ask, "messages": history})
    assert isinstance(answer, Answer)
    assert len(seen) == 3
    client.off("completion:response", seen.append)
    return [*done, answer]


WAYS = {
    Mode.TOOLS: (one_of, iterable, partial),
    Mode.PARALLEL_TOOLS: (parallel,),
    Mode.RESPONSES_TOOLS: (one_of, iterable, partial),
}


def main() -> None:
    own = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=120)
    model = own.models.list().data[0].id
    ask = {"model": model, "temperature": 0, "max_tokens": 64, "max_retries": 0}
    for mode, ways in WAYS.items():
        for way in ways:
            client = instructor.from_openai(own, mode=mode)
            first, second = (repr(loop(client, way, ask)) for _ in range(2))
            assert first == second
            print(f"instructor, {mode.value}, {way.__name__}: {first}")


if __name__ == "__main__":
    main()
