"""OpenAI's words for the pieces of an answer, whole and in deltas."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from detinfer.server.api.openai.tools.pieces import Piece

Value = dict[str, Any]
_ID_CHARACTERS = 24  # of a call, behind its prefix


class Spelling:
    """Spells the pieces of one answer; the ids of its calls follow from the answer's own.

    Args:
        answer_id: of the answer, the choice's index in it.
        id_length: characters of a call's id, where the model's template wants so many.

    Attributes:
        calls: that were told so far.
    """

    def __init__(self, answer_id: str, id_length: int | None) -> None:
        self.calls = 0
        self._answer_id, self._id_length = answer_id, id_length

    def delta(self, piece: Piece) -> Value:
        """Return what a stream says of a piece."""
        if piece.kind == "reasoning":
            return {"reasoning_content": piece.text, "reasoning": piece.text}
        if piece.kind == "content":
            return {"content": piece.text}
        if piece.kind == "arguments":
            index = self.calls - 1
            return {"tool_calls": [{"index": index, "function": {"arguments": piece.text}}]}
        self.calls += 1
        return {"tool_calls": [{"index": self.calls - 1, **self._call(piece.text, self.calls)}]}

    def message(self, pieces: Iterable[Piece], reasons: bool) -> Value:
        """Return the whole message.

        Args:
            pieces: all of them.
            reasons: whether it says what its reasoning was, if it had any.
        """
        content, reasoning = "", ""
        calls: list[Value] = []
        for piece in pieces:
            if piece.kind == "call":
                calls.append(self._call(piece.text, len(calls) + 1))
            elif piece.kind == "arguments":
                calls[-1]["function"]["arguments"] += piece.text
            elif piece.kind == "reasoning":
                reasoning += piece.text
            else:
                content += piece.text
        self.calls = len(calls)
        message: Value = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        if reasons:
            message |= {"reasoning_content": reasoning or None, "reasoning": reasoning or None}
        return message

    def _call(self, name: str, number: int) -> Value:
        """Return a call whose arguments are to come."""
        digest = sha256(f"{self._answer_id}/{number}".encode()).hexdigest()
        length = self._id_length
        own = f"call_{digest[:_ID_CHARACTERS]}" if length is None else digest[:length]
        return {"id": own, "type": "function", "function": {"name": name, "arguments": ""}}
