"""What the description of a route says beside its handler's name."""

from __future__ import annotations

from typing import Any

from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.errors import ErrorResponse

_DESCRIPTIONS = {
    400: "The request cannot be served as asked; `param` names the field",
    401: "No API key, or an unknown one",
    404: "Unknown model",
    408: "The request itself took too long to arrive",
    413: "Body over 4 MiB",
    429: "The queue is full; see Retry-After",
    500: "The engine gave up on this request",
    503: "Loading, draining, or the engine is dead; `code` says which",
    504: "The answer took longer than the server allows",
}


# What every event is, in OpenAPI 3.2's words, as FastAPI writes it too: 3.1 has none.
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
EVENTS = {"text/event-stream": {"itemSchema": _EVENT}}


def failures(*statuses: int, model: Any = ErrorResponse) -> dict[int | str, dict[str, Any]]:
    """Return the documented failures of a route, in its dialect's ``model``."""
    return {status: {"model": model, "description": _DESCRIPTIONS[status]} for status in statuses}


def answered(model: Any) -> dict[int | str, dict[str, Any]]:
    """Return the success of a route that answers JSON."""
    return {200: {"model": model}}


def plain(description: str) -> dict[int | str, dict[str, Any]]:
    """Return the success of a route that answers text."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {200: {"description": description, "content": text}}


def streamed(model: Any, description: str) -> dict[int | str, dict[str, Any]]:
    """Return the success of a route that answers whole or as server-sent events."""
    return {200: {"model": model, "description": description, "content": EVENTS}}


def body_of(*models: type[StrictBody]) -> dict[str, Any]:
    """Describe the body of a route that reads it itself; the app adds the models' schemas."""
    references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def drop_json_of_others(schema: dict[str, Any]) -> None:
    """Leave out the JSON that FastAPI has every route answer, where the route says what it does."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            content = operation["responses"]["200"].get("content", {})
            if len(content) > 1 and content.get("application/json") == {"schema": {}}:
                del content["application/json"]


def drop_null_defaults(schema: Any) -> None:
    """Leave out, anywhere in a schema, that a field left out is null: each says so in its type.

    Generators of clients put such defaults into bodies, or refuse them beside the type.
    """
    if isinstance(schema, dict):
        if "default" in schema and schema["default"] is None:
            del schema["default"]
        for part in schema.values():
            drop_null_defaults(part)
    elif isinstance(schema, list):
        for part in schema:
            drop_null_defaults(part)
