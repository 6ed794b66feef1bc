"""Which module's forward is running, for errors that name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from detinfer.models.swap import own_class


@contextmanager
def naming_modules(model: nn.Module) -> Iterator[Callable[[], str]]:
    """Track the innermost module of ``model`` that is running (at load only).

    Yields:
        A function giving its qualified name and class; after an exception, those of the module that
        raised it.
    """
    names = {id(module): name for name, module in model.named_modules()}
    stack: list[nn.Module] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        stack.pop()

    def where() -> str:
        module = stack[-1] if stack else model
        name, own = names.get(id(module)), own_class(module).__name__
        return f"{name} ({own})" if name else own

    handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave))
    try:
        yield where
    finally:
        for handle in handles:
            handle.remove()
