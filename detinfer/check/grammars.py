"""What neighbours' answers keep to, drawn anew for each: schemas, regular expressions, grammars."""

from __future__ import annotations

import json
import random
from typing import Any

from detinfer.params import SamplingParams

# Whoever answers this can keep to what is drawn: all of it is in ASCII.
PROBE = SamplingParams(max_tokens=1, regex='[a-z0-9 {":,]+')

_NAMES = ("name", "age", "city", "colour", "done", "items", "size", "year")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def draw_constraint(seed: int | None) -> dict[str, str]:
    """Return a field of ``SamplingParams`` that constrains an answer, and what it is to keep to."""
    rng = random.Random(f"detinfer check grammar {seed}")
    field, draw = rng.choice((("json_schema", _schema), ("regex", _regex), ("grammar", _grammar)))
    return {field: draw(rng)}


def _schema(rng: random.Random) -> str:
    names = rng.sample(_NAMES, rng.randint(1, 4))
    schema = {
        "type": "object",
        "properties": {name: _kind(rng) for name in names},
        "required": names[: rng.randint(1, len(names))],
        "additionalProperties": False,
    }
    return json.dumps(schema)


def _kind(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    kinds: tuple[dict[str, Any], ...] = (
        {"type": "boolean"},
        {"type": "string", "maxLength": rng.randint(1, 12)},
        {"type": "integer", "minimum": low, "maximum": low + rng.randint(1, 2000)},
        {"enum": rng.sample(_NAMES, 3)},
        {"type": "array", "items": {"type": "integer"}, "maxItems": rng.randint(1, 4)},
    )
    return rng.choice(kinds)


def _regex(rng: random.Random) -> str:
    first, last = sorted(rng.sample(_LETTERS, 2))
    least = rng.randint(1, 3)
    return f"({rng.choice(_NAMES)}|[{first}-{last}0-9]{{{least},{least + 3}}},?)+"


def _grammar(rng: random.Random) -> str:
    words = " | ".join(json.dumps(word) for word in rng.sample(_NAMES, 3))
    left, right = rng.choice(("()", "[]", "{}"))
    return f'start: word ("," word)*\nword: {words} | "{left}" start "{right}"'
