"""``instructor`` on a detinfer server: instructor_client.py URL."""

from __future__ import annotations

import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field

QUESTION = [{"role": "user", "content": "Ann is 34 years old and lives in Rome. Who is she?"}]


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)
    city: Literal["Paris", "Rome", "Oslo"]


class Anything(BaseModel):
    """Any JSON object, which is all that the mode JSON asks the server for."""

    name: object = None


MODES = {
    instructor.Mode.TOOLS: Person,
    instructor.Mode.JSON_SCHEMA: Person,
    instructor.Mode.JSON: Anything,
}


def main() -> None:
    own = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=120)
    model = own.models.list().data[0].id
    ask = {"model": model, "messages": QUESTION, "temperature": 0, "max_tokens": 300}
    for mode, kind in MODES.items():
        client = instructor.from_openai(own, mode=mode)
        if kind is Anything:  # or so small a model never comes to the object's end
            ask |= {"frequency_penalty": 2}
        found, again = (client.create(response_model=kind, max_retries=0, **ask) for _ in range(2))
        assert isinstance(found, kind)
        assert found.model_dump() == again.model_dump()
        # Of a schema whose fields may all be missing: another grammar, another answer.
        parts = list(client.create_partial(response_model=kind, max_retries=0, **ask))
        assert len(parts) > 1
        assert parts[-1].model_dump().keys() == found.model_dump().keys()
        print(f"instructor, {mode.value}: {found!r}")


if __name__ == "__main__":
    main()
