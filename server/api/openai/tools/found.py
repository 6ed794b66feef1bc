"""Calls among what a model writes of its own accord."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from pydantic_core import from_json

from detinfer.server.api.openai.tools.families import Family
from detinfer.server.api.openai.tools.json_end import JsonEnd
from detinfer.server.api.openai.tools.pieces import Piece, held_back

# A name in front of its arguments, or every beginning of that: bounded, as it is held back.
_HEADING = re.compile(
    r"(?P<name>[\w.-]{1,64})(?:\[CALL_ID\]\w{0,64})?\[ARGS\](?=\s{0,64}\{)"
    r"|[\w.-]{1,64}(?:\[[A-Z_]{0,7}\]?\w{0,64}){0,2}\s{0,64}\Z",
    re.ASCII,
)


class FoundCalls:
    """Tells calls from content.

    A call is told when it is whole: its JSON ended, its name is a tool's and its arguments are an
    object. Anything else, a call that is cut off too, is content to the letter; white space around
    calls goes with them.

    Args:
        family: how calls are written.
        names: of the tools.
        single: whether calls after the first are left out.
    """

    def __init__(self, family: Family, names: Collection[str], single: bool = False) -> None:
        self._family, self._names, self._single = family, names, single
        self._called = False
        self._text = ""  # not decided yet
        self._held = ""  # in front of it: white space and a mark that may begin a call
        self._fresh = family.bare  # a value without a mark would be a call
        self._marked = False  # a value has to follow
        self._name = ""  # of the function whose arguments the value is
        self._closing: str | None = None  # after a call: the mark that may follow
        self._value: list[str] = []
        self._end: JsonEnd | None = None  # of the value that is being read

    def push(self, text: str) -> list[Piece]:
        """Take more text; return what is certain by now."""
        self._text += text
        pieces: list[Piece] = []
        while self._text and self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back, once nothing can follow."""
        rest = self._held + "".join(self._value) + self._text
        return [Piece("content", rest)] if rest else []

    def _step(self, pieces: list[Piece]) -> bool:
        """Decide on some of the text; False if that takes more of it."""
        if self._end is not None:
            return self._go_on(self._end, pieces)
        if self._closing is not None:
            return self._close(self._closing)
        rest = self._text.lstrip()
        if not rest and (self._marked or self._fresh):
            return False
        if rest[:1] in ("{", "[") and (self._marked or self._fresh):
            self._held += self._text[: len(self._text) - len(rest)]
            self._text, self._marked, self._end = rest, False, JsonEnd()
            return True
        if self._marked:
            if self._family.named and (heading := _HEADING.match(rest)):
                return self._take(heading)
            self._marked = False
            self._give(self._held, pieces)
            self._held = ""
            return True
        return self._look(pieces)

    def _take(self, heading: re.Match[str]) -> bool:
        """Take a name in front of arguments; False if there may be more of it."""
        if heading["name"] is None:
            return False
        self._name = heading["name"]
        at = len(self._text) - len(heading.string) + heading.end()
        self._held, self._text = self._held + self._text[:at], self._text[at:]
        return True

    def _go_on(self, end: JsonEnd, pieces: list[Piece]) -> bool:
        """Read on in a value; when it has ended, tell its calls."""
        stop = end.feed(self._text)
        self._value.append(self._text[:stop])
        self._text = "" if stop is None else self._text[stop:]
        if stop is None:
            return False
        value, self._value, self._end = "".join(self._value), [], None
        calls = _calls(value, self._names, self._name)
        self._name = ""
        if calls:
            for call in calls[: 1 - self._called] if self._single else calls:
                pieces += call
                self._called = True
            self._closing, self._fresh = self._family.end, self._family.bare
        else:
            self._give(self._held + value, pieces)
        self._held = ""
        return True

    def _close(self, closing: str) -> bool:
        """Leave out white space after a call, and the mark that ends it."""
        rest = self._text.lstrip()
        if closing and rest.startswith(closing):
            closing, rest = "", rest[len(closing) :].lstrip()
        undecided = closing.startswith(rest)  # nothing is the beginning of anything
        self._text, self._closing = rest, closing if undecided else None
        return not undecided

    def _look(self, pieces: list[Piece]) -> bool:
        """Give the text in front of a mark."""
        mark = self._family.begin
        at = self._text.find(mark) if mark else -1
        stop = len(self._text) - held_back(self._text, mark) if at < 0 else at
        content = self._text[:stop].rstrip() if mark else self._text
        self._give(content, pieces)
        if at < 0:
            self._text = self._text[len(content) :]
            return False
        self._held = self._text[len(content) : at + len(mark)]
        self._text, self._marked = self._text[at + len(mark) :], True
        return True

    def _give(self, content: str, pieces: list[Piece]) -> None:
        if content:
            pieces.append(Piece("content", content))
            self._fresh = False


def _calls(text: str, names: Collection[str], name: str) -> list[list[Piece]]:
    """Return the calls that a JSON value has; none if any of it is no call.

    Args:
        text: the value; if there is a name, the arguments.
        names: of the tools.
        name: of the function; empty where the value says it.
    """
    try:
        value = from_json(text, allow_inf_nan=False)
        if name:
            value = {"name": name, "arguments": value}
        calls = [_call(one, names) for one in (value if isinstance(value, list) else [value])]
    except ValueError:
        return []
    return [call for call in calls if call] if all(calls) else []


def _call(value: Any, names: Collection[str]) -> list[Piece]:
    """Return a call's pieces; none if it is no call of a tool.

    Raises:
        ValueError: a number that JSON cannot have.
    """
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in names:
        return []
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        return []
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return [Piece("call", name), Piece("arguments", text)]
