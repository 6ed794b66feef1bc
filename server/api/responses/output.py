"""Items of a response's output while they are written: a message, reasoning, a call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from detinfer.server.reply import Value

Event = tuple[str, Value]  # its type, and what it says beside its place


class Item(ABC):
    """One item.

    Args:
        response: the part of the response's id that is its own.
        place: of the item in the output.
    """

    kind: ClassVar[str]
    prefix: ClassVar[str]  # of its id

    def __init__(self, response: str, place: int) -> None:
        self.id = f"{self.prefix}_{response}_{place}"
        self.place: Value = {"item_id": self.id, "output_index": place}
        self._written: list[str] = []

    @abstractmethod
    def value(self, status: str) -> Value:
        """Return the item so far."""

    @abstractmethod
    def beginning(self) -> Value:
        """Return the item before anything of it is written."""

    def begin(self) -> Iterator[Event]:
        """Yield the events after the one that the item is there."""
        return iter(())

    @abstractmethod
    def write(self, text: str, logprobs: list[Value]) -> Iterator[Event]:
        """Take more of it."""

    @abstractmethod
    def end(self) -> Iterator[Event]:
        """Yield the events before the one that the item is done."""

    @property
    def written(self) -> str:
        """What was written so far."""
        return "".join(self._written)


class _InParts(Item):
    """An item of one part of text."""

    part_kind: ClassVar[str]

    def __init__(self, response: str, place: int) -> None:
        super().__init__(response, place)
        self.place["content_index"] = 0

    def part(self) -> Value:
        """Return its only part so far."""
        return {"type": self.part_kind, "text": self.written}

    def beginning(self) -> Value:
        return {**self.value("in_progress"), "content": []}

    def begin(self) -> Iterator[Event]:
        yield "content_part.added", {"part": self.part()}

    def write(self, text: str, logprobs: list[Value]) -> Iterator[Event]:
        self._written.append(text)
        yield f"{self.part_kind}.delta", {"delta": text, **self.scores(logprobs)}

    def end(self) -> Iterator[Event]:
        part = self.part()
        yield f"{self.part_kind}.done", {"text": part["text"], **self.scores()}
        yield "content_part.done", {"part": part}

    def scores(self, new: list[Value] | None = None) -> Value:
        """Return what an event tells of log-probabilities, all of them or the new ones."""
        return {}


class Message(_InParts):
    """What the model says."""

    kind, prefix, part_kind = "message", "msg", "output_text"

    def __init__(self, response: str, place: int) -> None:
        super().__init__(response, place)
        self._logprobs: list[Value] = []

    def part(self) -> Value:
        """See ``Item``."""
        return {**super().part(), "annotations": [], "logprobs": list(self._logprobs)}

    def value(self, status: str) -> Value:
        """See ``Item``."""
        own = {"type": self.kind, "id": self.id, "role": "assistant"}
        return {**own, "status": status, "content": [self.part()]}

    def scores(self, new: list[Value] | None = None) -> Value:
        """See ``Item``."""
        self._logprobs += new or []
        return {"logprobs": list(self._logprobs) if new is None else new}


class Reasoning(_InParts):
    """What it thought before."""

    kind, prefix, part_kind = "reasoning", "rs", "reasoning_text"

    def value(self, status: str) -> Value:
        """See ``Item``."""
        own = {"type": self.kind, "id": self.id, "status": status, "content": [self.part()]}
        return {**own, "summary": [], "encrypted_content": None}


class FunctionCall(Item):
    """A call of a tool.

    Args:
        call: as a chat's delta begins it.
        response, place: as ``Item`` has them.
    """

    kind, prefix = "function_call", "fc"

    def __init__(self, call: Value, response: str, place: int) -> None:
        super().__init__(response, place)
        self._call = {"call_id": call["id"], "name": call["function"]["name"]}

    def value(self, status: str) -> Value:
        """See ``Item``."""
        own = {"type": self.kind, "id": self.id, **self._call}
        return {**own, "arguments": self.written, "status": status}

    def beginning(self) -> Value:
        """See ``Item``."""
        return self.value("in_progress")

    def write(self, text: str, logprobs: list[Value]) -> Iterator[Event]:
        """See ``Item``."""
        self._written.append(text)
        yield "function_call_arguments.delta", {"delta": text}

    def end(self) -> Iterator[Event]:
        """See ``Item``."""
        done = {"name": self._call["name"], "arguments": self.written}
        yield "function_call_arguments.done", done
