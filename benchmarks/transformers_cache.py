"""transformers' own cache, for running a model as its library does: what ours is compared with."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache


def new_cache(model: Any) -> dict[str, Any]:
    """Return an empty cache as a keyword argument of ``model``, which fills it in place.

    The argument was ``past_key_values`` before transformers 5.24, which calls it ``cache``.
    """
    parameters = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in parameters else "past_key_values"
    return {name: DynamicCache(config=model.config)}
