"""Swapping a module's class in place, so that parameters, names, hooks and ties stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from detinfer.models.context import current

_derived: dict[tuple[type, ...], type] = {}


def swap_formula(module: nn.Module, ours: type[nn.Module]) -> None:
    """Put ``ours`` in front of the module's own class, whose forward stays that of fast steps.

    Args:
        module: its forward takes one tensor and gives one.
        ours: its forward is the contract's formula, and nothing else.
    """
    own = type(module)
    forward = _by_mode(ours.forward, own.forward)
    module.__class__ = _derive((ours, own), own, forward=forward)


def swap_class(module: nn.Module, ours: type) -> None:
    """Put ``ours`` in front of the module's own class; its forward is that of both modes."""
    module.__class__ = _derive((ours, type(module)), type(module))


def swap_base(module: nn.Module, ours: type) -> None:
    """Put ``ours``, a subclass of a torch.nn class, between the module's own class and that one.

    A subclass's own forward still runs and reaches ours through ``super().forward``; for a module
    that is of the torch.nn class itself, ours is the forward.
    """
    own: type = type(module)
    module.__class__ = _derive((ours,) if own in ours.__mro__ else (own, ours), own)


def own_class(module: nn.Module) -> type:
    """Return the class the module had before it was swapped; its class if it was not."""
    swapped: type = getattr(type(module), "swapped_from", type(module))
    return swapped


def _derive(bases: tuple[type, ...], own: type, **members: Any) -> type:
    if bases not in _derived:
        members["swapped_from"] = own
        _derived[bases] = type(f"Deterministic{own.__name__}", bases, members)
    return _derived[bases]


def _by_mode(formula: Callable[..., Tensor], own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if current().deterministic:
            return formula(self, x)
        return own(self, x).to(x.dtype)  # a binary32 weight would widen it

    return forward
