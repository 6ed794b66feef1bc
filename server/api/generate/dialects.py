"""``POST /generate`` speaks three dialects: which one a body is in."""

from __future__ import annotations

from typing import Any

from detinfer.errors import RequestError
from detinfer.server.api.bodies.strict import StrictBody
from detinfer.server.api.generate.body import GenerateRequest
from detinfer.server.api.sglang.body import SGLangRequest
from detinfer.server.api.tgi.body import TGIRequest

DIALECTS: tuple[type[StrictBody], ...] = (GenerateRequest, SGLangRequest, TGIRequest)
_NAMES = {GenerateRequest: "detinfer's", SGLangRequest: "SGLang's", TGIRequest: "TGI's"}
# Whose a body is that has nothing else to tell it by: aliases of ours are the others' own names.
_OWNERS = {"inputs": TGIRequest, "text": SGLangRequest}


def dialect_of(value: Any) -> type[StrictBody]:
    """Return the dialect that has all fields of a body; null means left out.

    Fields that no dialect has are left for the dialect to refuse.

    Raises:
        RequestError: two fields that no dialect has both; names both.
    """
    given = [name for name in value if value[name] is not None] if isinstance(value, dict) else []
    known = [name for name in given if any(name in one.model_fields for one in DIALECTS)]
    possible = [one for one in DIALECTS if all(name in one.model_fields for name in known)]
    if not possible:
        raise _mixed(known)
    owner = next((_OWNERS[name] for name in known if name in _OWNERS), possible[0])
    return owner if owner in possible else possible[0]


def _mixed(names: list[str]) -> RequestError:
    for place, name in enumerate(names):
        for other in names[:place]:
            if not any({name, other} <= one.model_fields.keys() for one in DIALECTS):
                return RequestError(
                    f"{name}: got it beside {other}, expected one of them: "
                    f"{name} is {_owner(name)}, {other} is {_owner(other)}",
                    name,
                )
    raise AssertionError(f"no two of {names} exclude each other")


def _owner(name: str) -> str:
    return " and ".join(_NAMES[one] for one in DIALECTS if name in one.model_fields)
