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
