"""What a stream of server-sent events says."""

from __future__ import annotations

import json
from typing import Any


def events(text: str, done: bool = True) -> list[dict[str, Any]]:
    """The values of all events; ``done`` says whether the stream must end with ``[DONE]``."""
    frames = text.split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith("data: ") for frame in frames)
    values = [frame.removeprefix("data: ") for frame in frames]
    if done:
        assert values.pop() == "[DONE]"
    return [json.loads(value) for value in values]


def typed_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream of responses, whose names are their types, numbered from 0 on."""
    frames = text.split("\n\n")
    assert frames.pop() == ""
    found = []
    for frame in frames:
        name, data = frame.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    return found


def unnamed(value: Any) -> Any:
    """A response without what differs from call to call."""
    if isinstance(value, list):
        return [unnamed(one) for one in value]
    if not isinstance(value, dict):
        return value
    drawn = ("id", "item_id", "created_at", "completed_at", "digest")
    return {name: unnamed(one) for name, one in value.items() if name not in drawn}
