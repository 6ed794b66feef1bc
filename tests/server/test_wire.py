"""What goes out is JSON that any reader takes."""

from __future__ import annotations

import json
import math

import pytest

from detinfer.server.wire import to_json


def strictly(text: str) -> object:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_log_probability_of_what_cannot_come_is_openais() -> None:
    value = {"a": [{"top": [[3, -0.5], (4, -math.inf)]}], "b": -math.inf, "c": "-Infinity"}
    expected = {"a": [{"top": [[3, -0.5], [4, -9999.0]]}], "b": -9999.0, "c": "-Infinity"}
    assert strictly(to_json(value)) == expected
    assert value["b"] == -math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_a_fault_of_ours(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"a": [value]})
