"""Structured outputs by outlines, through each dialect it speaks: outlines_client.py URL."""

from __future__ import annotations

import sys
from typing import Any, Literal

import outlines
from huggingface_hub import InferenceClient
from openai import OpenAI
from pydantic import BaseModel


class City(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    large: bool


def main(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    name = client.models.list().data[0].id
    models: dict[str, tuple[Any, str]] = {
        "openai": (outlines.from_openai(client, name), "max_tokens"),
        "vllm": (outlines.from_vllm(client, name), "max_tokens"),
        "sglang": (outlines.from_sglang(client, name), "max_tokens"),
        "tgi": (outlines.from_tgi(InferenceClient(url)), "max_new_tokens"),
    }
    digits = outlines.regex(r"[0-9]{3}")
    for route, (model, limit) in models.items():
        print(route, City.model_validate_json(model("Name a city.", City, **{limit: 64})))
        if route != "openai":  # which it knows no regular expressions of
            number = model("Give a number.", digits, **{limit: 16})
            assert len(number) == 3, number
            assert number.isdigit(), number
    vllm, _ = models["vllm"]
    assert vllm("Yes or no?", Literal["yes", "no"], max_tokens=16) in ("yes", "no")
    assert vllm("Say a or b.", outlines.cfg('start: "a" | "b"'), max_tokens=16) in ("a", "b")


if __name__ == "__main__":
    main(sys.argv[1])
