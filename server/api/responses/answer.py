"""A response, whole and as the events of its stream: a chat's choice in other words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from detinfer.engine.outputs import RequestOutput
from detinfer.server.api.openai.chat_choice import ChatChoice
from detinfer.server.api.responses.body import ResponsesRequest
from detinfer.server.api.responses.output import FunctionCall, Item, Message, Reasoning
from detinfer.server.api.responses.tools import told_choice
from detinfer.server.call import Call
from detinfer.server.reply import Value


def frame_of(body: ResponsesRequest, call: Call, name: str, about: Value) -> Value:
    """Return what a response says from its first event on.

    Args:
        body: what it answers.
        call: the same, resolved.
        name: part of its id.
        about: the model and its fingerprint.
    """
    text = {} if body.text is None else body.text.model_dump(exclude_none=True)
    reasoning = body.reasoning
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": int(time.time()),
        **about,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "temperature": call.params.temperature,
        "top_p": call.params.top_p,
        "top_logprobs": call.params.logprobs or 0,
        "text": {"format": {"type": "text"}, **text},
        "reasoning": {"effort": reasoning and reasoning.effort, "summary": None},
        "tools": [tool.told() for tool in body.tools or ()],
        "tool_choice": told_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "metadata": body.metadata or {},
        "user": body.user,
        "service_tier": "default",
        "truncation": "disabled",
        "background": False,
        "previous_response_id": None,
        "store": False,
        "deterministic": call.params.deterministic,
    }


class ResponseAnswer:
    """What the increments of a response add up to, event by event.

    Args:
        choice: reads the increments.
        frame: of ``frame_of``.

    Attributes:
        begun: whether an event has been made.
    """

    def __init__(self, choice: ChatChoice, frame: Value) -> None:
        self.begun = False
        self._choice = choice
        self._frame = frame
        self._name = frame["id"].removeprefix("resp_")
        self._items: list[Value] = []
        self._open: Item | None = None
        self._logprobs: list[Value] = []  # of tokens whose text is still to come
        self._count = 0
        self._end: Value = {}

    @property
    def receipt(self) -> Value:
        """See ``Answer``."""
        return self._choice.receipt

    @receipt.setter
    def receipt(self, value: Value) -> None:
        self._choice.receipt = value

    def add(self, output: RequestOutput) -> None:
        """Take one increment."""
        for _ in self.events(output):
            pass

    def value(self) -> Value:
        """Return the finished response."""
        return self._response(self._end["status"])

    def events(self, output: RequestOutput) -> Iterator[Value]:
        """Yield the events that an increment makes."""
        if not self.begun:
            self.begun = True
            for kind in ("created", "in_progress"):
                yield self._event(kind, response=self._response("in_progress"))
        for chunk in self._choice.events(output):
            yield from self._delta(chunk["delta"], (chunk["logprobs"] or {}).get("content") or [])
            if chunk["finish_reason"] is not None:
                yield from self._finish(chunk)

    def failure(self, code: str, message: str) -> Value:
        """Return the event of a failure."""
        error = {"code": code, "message": message}
        return self._event("failed", response={**self._response("failed"), "error": error})

    def _delta(self, delta: Value, logprobs: list[Value]) -> Iterator[Value]:
        """Write on the item that a delta is of."""
        self._logprobs += logprobs
        if delta.get("reasoning_content"):
            yield from self._write(Reasoning, delta["reasoning_content"], [])
        if delta.get("content") or (logprobs and delta.get("content") is not None):
            told, self._logprobs = self._logprobs, []
            yield from self._write(Message, delta["content"], told)
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                self._logprobs = []
                yield from self._begin(partial(FunctionCall, call))
            if call["function"]["arguments"]:
                yield from self._on(call["function"]["arguments"], [])

    def _write(
        self, kind: type[Message | Reasoning], text: str, logprobs: list[Value]
    ) -> Iterator[Value]:
        if not isinstance(self._open, kind):
            yield from self._begin(kind)
        yield from self._on(text, logprobs)

    def _begin(self, make: Callable[[str, int], Item]) -> Iterator[Value]:
        """Begin an item, where the last one ends."""
        yield from self._done("completed")
        self._open = item = make(self._name, len(self._items))
        yield self._event("output_item.added", output_index=len(self._items), item=item.beginning())
        for kind, values in item.begin():
            yield self._event(kind, **item.place, **values)

    def _on(self, text: str, logprobs: list[Value]) -> Iterator[Value]:
        assert self._open is not None
        for kind, values in self._open.write(text, logprobs):
            yield self._event(kind, **self._open.place, **values)

    def _done(self, status: str) -> Iterator[Value]:
        """End the item that is open, if one is."""
        if self._open is None:
            return
        for kind, values in self._open.end():
            yield self._event(kind, **self._open.place, **values)
        item = self._open.value(status)
        yield self._event("output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._open = None

    def _finish(self, chunk: Value) -> Iterator[Value]:
        status = "incomplete" if chunk["finish_reason"] == "length" else "completed"
        if self._open is None and not self._items:  # an answer of no text is a message of none
            yield from self._begin(Message)
        yield from self._done(status)
        proof = {name: chunk[name] for name in ("digest", "seed")}
        self._end = {"status": status, **proof, **self.receipt}
        yield self._event(status, response=self._response(status))

    def _event(self, kind: str, **values: Any) -> Value:
        self._count += 1
        return {"type": f"response.{kind}", "sequence_number": self._count - 1, **values}

    def _response(self, status: str) -> Value:
        incomplete = status == "incomplete"
        ended = status in ("completed", "incomplete")
        return {
            **self._frame,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
            "output": list(self._items),
            "completed_at": int(time.time()) if status == "completed" else None,
            "usage": self._usage() if ended else None,
            **self._end,
        }

    def _usage(self) -> Value:
        last = self._choice.last
        assert last is not None
        return {
            "input_tokens": last.prompt_tokens,
            "input_tokens_details": {"cached_tokens": last.cached_tokens},
            "output_tokens": last.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": last.prompt_tokens + last.completion_tokens,
        }
