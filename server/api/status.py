"""What the routes that tell of the server answer, for the description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

Told = dict[str, Any]  # of which there is more than a client's types need


class Ready(BaseModel):
    """Requests are served."""

    status: Literal["ready"]


class Version(BaseModel):
    """The server's."""

    version: str


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(BaseModel):
    """All models that are served: one."""

    object: Literal["list"]
    data: list[ModelCard]
