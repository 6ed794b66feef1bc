"""Calls that a grammar forces: its schema, and their reading as they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from detinfer.engine.schemas import parts_of
from detinfer.server.api.openai.tools.body import Calling, FunctionDefinition
from detinfer.server.api.openai.tools.json_end import JsonEnd
from detinfer.server.api.openai.tools.pieces import Piece
from detinfer.server.tokenizing import aside

# Keywords whose values are no schemas, those with schemas by name, and those that only describe,
# which would take room.
_VALUES = ("const", "enum")
_BY_NAME = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_DESCRIBE = ("title", "description", "default", "examples", "deprecated", "$comment")
_NAME_THE_WHOLE = ("$schema", "$id")
# Beside these, properties may be others' to name.
_OPEN = (
    *("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"),
    *("$ref", "allOf", "anyOf", "oneOf", "if"),
)
# By these an object has several schemas, or must not be by one: none of them may close it alone.
_TOGETHER = (
    *("allOf", "oneOf", "not", "if", "contains"),
    *("patternProperties", "dependentSchemas", "unevaluatedProperties"),
)
_ELSEWHERE = ("$ref", "anyOf")  # and by these, where anything else stands beside them but these:
_BESIDE = {"type", "$defs", "definitions"}


def calls_schema(functions: Sequence[FunctionDefinition], single: bool) -> dict[str, Any]:
    """Return the schema of a list of calls, one at least: ``[{"name": "f", "arguments": {…}}]``.

    Args:
        functions: what may be called.
        single: whether there is to be just one call.
    """
    calls = []
    for place, function in enumerate(functions):
        root = f"#/items/anyOf/{place}/properties/arguments"
        properties = {
            "name": {"type": "string", "const": function.name},
            "arguments": _arguments_schema(function.parameters, root),
        }
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": [*properties],
                "additionalProperties": False,
            }
        )
    most = {"maxItems": 1} if single else {}
    return {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **most}


async def forcing(calling: Calling | None, size: int) -> str | None:
    """Return the schema that forces calls, as JSON text; None where none is to be forced.

    Args:
        calling: what may be called.
        size: of the body: larger ones are worked on in a thread.
    """
    if calling is None or not calling.forced:
        return None
    return await aside(size, calls_text, calling.forced, calling.single)


def calls_text(functions: Sequence[FunctionDefinition], single: bool) -> str:
    """Return ``calls_schema`` as JSON text."""
    return json.dumps(calls_schema(functions, single))


def _arguments_schema(parameters: dict[str, Any] | None, root: str) -> dict[str, Any]:
    """Return what arguments are by; nothing but what is named unless the schema says otherwise."""
    schema: dict[str, Any] = {"type": "object"} | _moved(parameters or {"properties": {}}, root)
    schema = {name: value for name, value in schema.items() if name not in _NAME_THE_WHOLE}
    parts = [*parts_of(schema)]
    for part in [schema] if any(map(_puts_together, parts)) else parts:
        if _names_all(part):
            part["additionalProperties"] = False
    return schema


def _puts_together(schema: dict[str, Any]) -> bool:
    if any(name in schema for name in _TOGETHER):
        return True
    return any(name in schema for name in _ELSEWHERE) and len(schema.keys() - _BESIDE) > 1


def _names_all(schema: dict[str, Any]) -> bool:
    """Whether a schema names an object's properties, and leaves it open whether there are more."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or any(name in schema for name in _OPEN):
        return False
    return isinstance(required, list) and {*map(str, required)} <= {*named}


def _moved(schema: Any, root: str) -> Any:
    """Return a schema that was a whole as it has to be where it stands now, at ``root``."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _moved_value(name, value, root)
        for name, value in schema.items()
        if name not in _DESCRIBE
    }


def _moved_value(name: str, value: Any, root: str) -> Any:
    if name in _VALUES:
        return value
    if name in _BY_NAME and isinstance(value, dict):
        return {one: _moved(schema, root) for one, schema in value.items()}
    if name == "$ref" and isinstance(value, str) and value.startswith("#"):
        return root + value[1:]
    return _moved(value, root)


_HEAD = re.compile(r'[\s\[,}]*\{"name": "([\w.-]+)", "arguments": ', re.ASCII)


class ForcedCalls:
    """Reads calls of ``calls_schema`` as the engine's grammars space them, while they come."""

    def __init__(self) -> None:
        self._text = ""
        self._called = False
        self._end: JsonEnd | None = None  # of the arguments that are being read

    def push(self, text: str) -> list[Piece]:
        """Take more text; return what is certain by now."""
        self._text += text
        pieces: list[Piece] = []
        while self._text:
            if self._end is None:
                head = _HEAD.match(self._text)
                if head is None:
                    break
                pieces.append(Piece("call", head[1]))
                self._text, self._called, self._end = self._text[head.end() :], True, JsonEnd()
                continue
            stop = self._end.feed(self._text)
            pieces.append(Piece("arguments", self._text[:stop]))
            self._text = "" if stop is None else self._text[stop:]
            if stop is not None:
                self._end = None
        return pieces

    def finish(self) -> list[Piece]:
        """Return an answer that ended before its first call as content."""
        return [] if self._called or not self._text else [Piece("content", self._text)]
