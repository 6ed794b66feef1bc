"""Tools in the body of a chat: what may be called, what must be, and what was called before."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError, from_json

from detinfer.errors import RequestError
from detinfer.server.api.bodies.fields import at_most
from detinfer.server.api.bodies.strict import StrictBody, shown

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_NO_PARAMETERS = {"type": "object", "properties": {}}


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise PydanticCustomError("name", "expected 1 to 64 characters of A-Za-z0-9_.-")
    return value


def _parameters(value: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of arguments, which are an object whether it says so or not."""
    kind = value.get("type", "object")
    if kind != "object":
        context = {"kind": shown(kind)}
        raise PydanticCustomError("parameters", 'expected type "object", not {kind}', context)
    return value


def _arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of a former call; an empty text is no arguments."""
    try:
        arguments = from_json(value or "{}", allow_inf_nan=False)
    except (TypeError, ValueError):
        arguments = None
    if not isinstance(value, str) or not isinstance(arguments, dict):
        raise PydanticCustomError("arguments", "expected a JSON object, as text")
    return arguments


Name = Annotated[
    str,
    AfterValidator(_name),
    Field(json_schema_extra={"pattern": f"^{_NAME.pattern}$"}),
]


class FunctionDefinition(StrictBody):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: Annotated[dict[str, Any], AfterValidator(_parameters)] | None = Field(
        None, description="a JSON schema of an object; none for no parameters"
    )
    strict: bool | None = Field(None, description="changes nothing: forced calls always are")


class Tool(StrictBody):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition

    def for_template(self) -> dict[str, Any]:
        """Return it as chat templates expect it, parameters and all."""
        of = self.function
        described = {} if of.description is None else {"description": of.description}
        parameters = _NO_PARAMETERS if of.parameters is None else of.parameters
        function = {"name": of.name, **described, "parameters": parameters}
        return {"type": "function", "function": function}


class CalledFunction(StrictBody):
    """The function of a former call."""

    name: Name
    arguments: Annotated[
        dict[str, Any], PlainValidator(_arguments), WithJsonSchema({"type": "string"})
    ] = Field(description="a JSON object, as text")
    parsed_arguments: Any = Field(None, description="ignored: OpenAI's SDK sends it back")


class FormerCall(StrictBody):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = Field(None, description="ignored")

    def for_template(self) -> dict[str, Any]:
        """Return it as chat templates expect it, arguments as an object."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Choice:
    """What a body says of which tools to call.

    Attributes:
        mode: whether calls may be, may not be, or have to be.
        names: the tools that it is about; None for all.
        single: whether there is to be one call exactly.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None
    single: bool = False


_FUNCTION = '{"type": "function", "function": {"name": "…"}}'


def _choice(value: Any) -> Choice | None:
    if value in ("none", "auto", "required"):
        return Choice(value)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function":
        return Choice("required", (_named(value),), single=True)
    if kind == "allowed_tools" and value.keys() == {"type", kind}:
        allowed = value[kind]
        mode = allowed.get("mode") if isinstance(allowed, dict) else None
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if mode in ("auto", "required") and isinstance(tools, list) and 0 < len(tools) <= MAX_TOOLS:
            return Choice(mode, tuple(map(_named, tools)))
    if value is not None:
        raise PydanticCustomError("choice", f"expected auto, none, required or {_FUNCTION}")
    return None


def _named(value: Any) -> str:
    """Return the name in the one form in which a function is named."""
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or value != {"type": "function", "function": {"name": name}}:
        raise PydanticCustomError("choice", f"expected {_FUNCTION}")
    return name


def _object(**properties: Any) -> dict[str, Any]:
    """Return the schema of an object of these and nothing else."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


_STRING = {"type": "string"}
_NAMED = _object(type=_STRING | {"const": "function"}, function=_object(name=_STRING))
_ALLOWED = _object(
    mode=_STRING | {"enum": ["auto", "required"]},
    tools={"type": "array", "items": _NAMED, "minItems": 1, "maxItems": MAX_TOOLS},
)
_CHOICE_SCHEMA = {
    "anyOf": [
        _STRING | {"enum": ["none", "auto", "required"]},
        _NAMED,
        _object(type=_STRING | {"const": "allowed_tools"}, allowed_tools=_ALLOWED),
        {"type": "null"},
    ]
}

Tools = Annotated[
    list[Tool],
    Field(fail_fast=True, json_schema_extra={"maxItems": MAX_TOOLS}),
    at_most(MAX_TOOLS),
]
ToolChoice = Annotated[Any, PlainValidator(_choice), WithJsonSchema(_CHOICE_SCHEMA)]
FormerCalls = Annotated[list[FormerCall], Field(fail_fast=True)]


@dataclass(frozen=True)
class Calling:
    """What the answers of a call may call.

    Attributes:
        names: of the tools that may be called.
        forced: those of which one has to be called; none where the model decides.
        found: whether calls are looked for in what the model writes of its own accord.
        single: whether there is one call at most.
    """

    names: frozenset[str]
    forced: tuple[FunctionDefinition, ...] = ()
    found: bool = False
    single: bool = False


def calling_of(
    tools: Sequence[Tool] | None, choice: Choice | None, parallel: bool | None
) -> Calling | None:
    """Return what tools and choice amount to; None where there are no tools.

    Raises:
        RequestError: two tools of one name, or a choice that there is not.
    """
    choice = choice or Choice()
    functions = {tool.function.name: tool.function for tool in tools or ()}
    if tools and len(functions) < len(tools):
        _refuse_twins(tools)
    chosen = [*functions] if choice.names is None else [*dict.fromkeys(choice.names)]
    if not functions and choice in (Choice("none"), Choice()):
        return None
    if unknown := [name for name in chosen if name not in functions]:
        got, expected = shown(unknown[0]), "the name of one of the tools"
        raise RequestError(f"tool_choice: got {got}, expected {expected}", "tool_choice")
    if not functions:
        raise RequestError(
            f"tool_choice: got {shown(choice.mode)} without tools, expected tools", "tool_choice"
        )
    return Calling(
        frozenset(chosen),
        tuple(functions[name] for name in chosen) if choice.mode == "required" else (),
        found=choice.mode == "auto",
        single=parallel is False or choice.single,
    )


def _refuse_twins(tools: Sequence[Tool]) -> None:
    names: set[str] = set()
    for place, tool in enumerate(tools):
        name, field = tool.function.name, f"tools.{place}.function.name"
        if name in names:
            got = f"{field}: got {shown(name)} twice"
            raise RequestError(f"{got}, expected names that differ", field)
        names.add(name)
