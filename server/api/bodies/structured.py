"""What an answer has to be like, in the words of every dialect: a schema, a regex, a grammar."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from detinfer.errors import RequestError
from detinfer.params import MAX_CONSTRAINT

MAX_CHOICES = 1024
_OBJECT = '{"type": "object"}'
_PLAIN = ("json_object", "text")
_STYLES = ("disable_any_whitespace", "disable_fallback")  # of vLLM's: here there is one way


class Structure(NamedTuple):
    """What constrains an answer: a field of ``SamplingParams``, and what it gets."""

    field: str
    value: Any


def _no_structure(expected: str) -> PydanticCustomError:
    return PydanticCustomError("structure", "expected {expected}", {"expected": expected})


def _json(value: Any) -> Structure | None:
    if value is None:
        return None
    if not isinstance(value, dict | str | bool):
        raise _no_structure("a JSON schema")
    return Structure("json_schema", value)


def _text(field: str) -> Callable[[Any], Structure | None]:
    def read(value: Any) -> Structure | None:
        if value is not None and not isinstance(value, str):
            raise _no_structure("a string")
        return None if value is None else Structure(field, value)

    return read


_regex, _grammar = _text("regex"), _text("grammar")


def _choice(value: Any) -> Structure | None:
    if value is None:
        return None
    good = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if not good or not 1 <= len(value) <= MAX_CHOICES:
        raise _no_structure(f"a list of 1 to {MAX_CHOICES} strings")
    spelled = [json.dumps(one, ensure_ascii=False) for one in value]
    return Structure("grammar", f"start: {' | '.join(spelled)}")


def _named(value: Any) -> Structure | None:
    """Read a schema beside its name."""
    known = {"name", "schema", "strict", "description"}
    if not isinstance(value, dict) or value.get("schema") is None or set(value) - known:
        raise _no_structure('{"name": "…", "schema": {…}}')
    return _json(value["schema"])


def _response_format(value: Any) -> Structure | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or (kind in _PLAIN and len(value) == 1):
        return Structure("json_schema", _OBJECT) if kind == "json_object" else None
    if kind != "json_schema" or set(value) - {"type", kind}:
        raise _no_structure('{"type": "text"}, "json_object" or "json_schema" with its json_schema')
    return _named(value.get(kind))


def text_format(value: Any) -> Structure | None:
    """Read the ``text.format`` of OpenAI's responses: a schema stands beside its type there.

    Raises:
        PydanticCustomError: it is none.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    if kind in _PLAIN or kind != "json_schema":
        return _response_format(value)
    return _named({name: one for name, one in value.items() if name != "type"})


_WAYS: dict[str, Callable[[Any], Structure | None]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": lambda value: Structure("json_schema", _OBJECT) if value is True else None,
}


def _structured_outputs(value: Any) -> Structure | None:
    if value is None:
        return None
    expected = _no_structure(f"an object with one of {', '.join(_WAYS)}")
    if not isinstance(value, dict):
        raise expected
    given = [name for name, one in value.items() if one not in (None, False)]
    ways = [name for name in given if name not in _STYLES]
    if len(ways) != 1 or ways[0] not in _WAYS:
        raise expected
    return _WAYS[ways[0]](value[ways[0]])


def _tgi_grammar(value: Any) -> Structure | None:
    if value is None:
        return None
    ways = {"json": _json, "regex": _regex, "json_schema": _named}
    if not isinstance(value, dict) or set(value) != {"type", "value"} or value["type"] not in ways:
        raise _no_structure('{"type": "json", "json_schema" or "regex", "value": …}')
    return ways[value["type"]](value["value"])


def _or_empty(read: Callable[[Any], Structure | None]) -> Callable[[Any], Structure | None]:
    return lambda value: None if value in ("", [], {}) else read(value)


def _field(read: Callable[[Any], Structure | None], *kinds: str, **more: Any) -> Any:
    # Said, since generators of clients else take it that an object has nothing in it.
    any_of = {"object": {"additionalProperties": True}}
    options = [{"type": kind, **any_of.get(kind, {}), **more} for kind in kinds]
    schema = {"anyOf": [*options, {"type": "null"}]}
    return Annotated[Any, PlainValidator(read), WithJsonSchema(schema)]


JsonSchema = _field(_json, "object", "string", "boolean")
Regex = _field(_regex, "string", maxLength=MAX_CONSTRAINT["regex"])
Grammar = _field(_grammar, "string", maxLength=MAX_CONSTRAINT["grammar"])
Choice = _field(_choice, "array", items={"type": "string"}, minItems=1, maxItems=MAX_CHOICES)
ResponseFormat = _field(_response_format, "object")
StructuredOutputs = _field(_structured_outputs, "object")
TGIGrammar = _field(_tgi_grammar, "object")
# SGLang's: an empty one is none.
JsonSchemaOrEmpty = _field(_or_empty(_json), "object", "string")
RegexOrEmpty = _field(_or_empty(_regex), "string")
GrammarOrEmpty = _field(_or_empty(_grammar), "string")


def given_structure(form: BaseModel, prefix: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what constrains the answer under our name, and the name the client used.

    Args:
        form: the body, or an object in it.
        prefix: of the form's fields, as the client knows them.

    Raises:
        RequestError: two do.
    """
    fields = type(form).model_fields
    given = {name: one for name in fields if isinstance(one := getattr(form, name), Structure)}
    names = [prefix + name for name in given]
    if len(names) > 1:
        raise RequestError(f"{names[1]}: got it beside {names[0]}, expected one of them", names[1])
    values = {one.field: one.value for one in given.values()}
    return values, dict(zip(values, names, strict=True))
