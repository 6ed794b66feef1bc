"""Tools in the body of ``POST /v1/responses``: the chat route's, written flat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from detinfer.errors import RequestError
from detinfer.server.api.bodies.fields import at_most
from detinfer.server.api.bodies.neutral import Absent, Off
from detinfer.server.api.openai.tools.body import (
    MAX_TOOLS,
    Calling,
    Choice,
    FunctionDefinition,
    Tool,
    calling_of,
)
from detinfer.server.call import in_words_of_client

Value = dict[str, Any]


class ResponsesTool(FunctionDefinition):
    """A function that the model may call; the only kind of tool."""

    type: Literal["function"]
    defer_loading: Off = None
    allowed_callers: Absent = None
    output_schema: dict[str, Any] | None = Field(None, description="ignored")

    def as_chat(self) -> Tool:
        """Return it as a chat's."""
        fields = {name: getattr(self, name) for name in FunctionDefinition.model_fields}
        return Tool(type="function", function=FunctionDefinition(**fields))

    def told(self) -> Value:
        """Return it as a response says it back."""
        own = {name: getattr(self, name) for name in FunctionDefinition.model_fields}
        return {"type": "function", **own}


def _choice(value: Any) -> Choice | None:
    if value is None:
        return None
    if value in ("none", "auto", "required"):
        return Choice(value)
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or value != {"type": "function", "name": name}:
        one = '{"type": "function", "name": "…"}'
        raise PydanticCustomError("choice", f"expected auto, none, required or {one}")
    return Choice("required", (name,), single=True)


_NAMED = {
    "type": "object",
    "properties": {"type": {"type": "string", "const": "function"}, "name": {"type": "string"}},
    "required": ["type", "name"],
    "additionalProperties": False,
}
_WORDS = {"type": "string", "enum": ["none", "auto", "required"]}

ResponsesTools = Annotated[
    list[ResponsesTool],
    Field(fail_fast=True, json_schema_extra={"maxItems": MAX_TOOLS}),
    at_most(MAX_TOOLS),
]
ResponsesToolChoice = Annotated[
    Any,
    PlainValidator(_choice),
    WithJsonSchema({"anyOf": [_WORDS, _NAMED, {"type": "null"}]}),
]


def calling(
    tools: list[ResponsesTool] | None, choice: Choice | None, parallel: bool | None
) -> Calling | None:
    """Return what may be called; None where there are no tools.

    Raises:
        RequestError: two tools of one name, or a choice that there is not.
    """
    try:
        return calling_of([tool.as_chat() for tool in tools or ()], choice, parallel)
    except RequestError as error:
        field = str(error.param)
        raise in_words_of_client(error, {field: field.replace(".function", "")}) from None


def told_choice(choice: Choice | None) -> str | Value:
    """Return a choice as a response says it back."""
    if choice is None or choice.names is None:
        return "auto" if choice is None else choice.mode
    return {"type": "function", "name": choice.names[0]}
