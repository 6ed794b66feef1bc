"""Swapping a module's class in place, so that parameters, names, hooks and ties stay."""

from __future__ import annotations

from torch import nn

_derived: dict[tuple[type, ...], type] = {}


def swap_class(module: nn.Module, ours: type) -> None:
    """Put ``ours`` in front of the module's own class, which ``super().forward`` then reaches."""
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


def _derive(bases: tuple[type, ...], own: type) -> type:
    if bases not in _derived:
        _derived[bases] = type(f"Deterministic{own.__name__}", bases, {"swapped_from": own})
    return _derived[bases]
