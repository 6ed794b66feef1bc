"""The audit at load: every op that runs is known to give the same bits, or the model is refused.

Patched leaves call our kernels, which PyTorch does not see. What it still sees of a forward pass
must be on a list of operations whose result for an element is fixed by IEEE-754 or that only move
data: no sums, no products of matrices, no transcendentals, nothing that reads a batch's other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detinfer.batch import Batch
from detinfer.errors import UnsupportedModelError
from detinfer.models.attention import AttentionCall, record_attention
from detinfer.models.naming import naming_modules

# Moves, views and makes data.
_MOVES = """
    _pin_memory
    _reshape_alias _to_copy _unsafe_view alias arange as_strided cat chunk clone contiguous
    copy_ detach diagonal empty empty_like empty_strided expand expand_as fill_ flatten full
    full_like gather index index_put_ index_select lift_fresh masked_fill masked_fill_ movedim
    narrow new_empty new_full new_ones new_zeros ones ones_like permute repeat
    repeat_interleave reshape resolve_conj resolve_neg scalar_tensor scatter select slice
    split split_with_sizes squeeze stack t to transpose unbind unflatten unsqueeze view
    view_as where zero_ zeros zeros_like
"""
# One correctly rounded (or exact) operation for each element.
_ELEMENTWISE = """
    abs add add_ bitwise_and bitwise_not bitwise_or clamp clamp_ clamp_max clamp_min div div_
    eq ge gt le logical_and logical_not logical_or lt maximum minimum mul mul_ ne neg relu
    relu_ rsub sub sub_
"""
ALLOWED_OPS = frozenset((_MOVES + _ELEMENTWISE).split())

_FIRST = 5  # tokens of the audited prompt
_NEIGHBOUR = 3


class Forwarder(Protocol):
    """What the audit needs of a model runner."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of ``batch.logit_rows``. [L, V]."""


def audit_model(model: nn.Module, vocab_size: int, runner: Forwarder) -> None:
    """Run a few tokens and refuse the model unless its bits can be guaranteed.

    Checked: every op PyTorch dispatches is on the list; attention ran once in each layer, with the
    window the configuration names; a prompt's logits have the same bits beside a neighbour.

    Args:
        model: patched.
        vocab_size: token ids are drawn below it.
        runner: runs the model on pages 0 and 1 of its pool.

    Raises:
        UnsupportedModelError: naming the module (qualified name and class) and the op.
    """
    prompt = [(7 * i + 3) % vocab_size for i in range(_FIRST)]
    neighbour = [(11 * i + 5) % vocab_size for i in range(_NEIGHBOUR)]
    with naming_modules(model) as where, record_attention() as calls, _OpAudit(where):
        together = runner.forward(_batch([prompt, neighbour], 0)).clone()
    _check_attention(model, calls)
    with naming_modules(model) as where, _OpAudit(where):
        alone = runner.forward(_batch([prompt[:-1]], 0)).clone()
        last = runner.forward(_batch([prompt[-1:]], _FIRST - 1)).clone()
    if not _same_bits(together[:_FIRST], torch.cat([alone, last])):
        raise UnsupportedModelError(
            f"{type(model).__name__}: a prompt's logits change with its neighbours or its chunks, "
            "though every op is known: some op reads other rows of the batch"
        )


class _OpAudit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises at the first dispatched op that is not on the list."""

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._where = where

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        reason = _objection(func, args, kwargs)
        if reason is not None:
            raise UnsupportedModelError(f"{self._where()}: op {func} {reason}")
        return func(*args, **kwargs)


def _objection(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return why an op is refused; None if it is allowed."""
    namespace, _, name = func._schema.name.partition("::")
    given = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    if any(isinstance(a, torch.Tensor) and a.is_complex() for a in given.values()):
        return "on complex numbers has no defined order of roundings"
    if name == "sort":
        return None if given.get("stable") is True else "leaves the order of equal values open"
    if name == "dropout":
        return None if given["train"] is False else "draws noise"
    if given.get("alpha", 1) != 1:
        return "with alpha may round once or twice"
    if given.get("accumulate") or given.get("reduce") or given.get("rounding_mode"):
        return "with accumulate, reduce or rounding_mode has no defined order of roundings"
    if namespace != "aten" or name not in ALLOWED_OPS:
        return "is not known to give the same bits in every batch and on every machine"
    return None


def _batch(prompts: list[list[int]], first_position: int) -> Batch:
    """One sequence a page, every row's logits."""
    lengths = [len(prompt) for prompt in prompts]
    return Batch(
        input_ids=np.array([t for p in prompts for t in p], dtype=np.int32),
        positions=np.concatenate([np.arange(n, dtype=np.int32) + first_position for n in lengths]),
        query_start=np.cumsum([0, *lengths], dtype=np.int32),
        block_tables=np.arange(len(prompts), dtype=np.int32)[:, None],
        logit_rows=np.arange(sum(lengths), dtype=np.int32),
    )


def _check_attention(model: Any, calls: list[AttentionCall]) -> None:
    config = model.config.get_text_config()
    if [call.layer for call in calls] != list(range(config.num_hidden_layers)):
        raise UnsupportedModelError(
            f"{type(model).__name__}: attention ran in layers {[c.layer for c in calls]}, "
            f"expected each of {config.num_hidden_layers} once, in order"
        )
    window = getattr(config, "sliding_window", None) or 0
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * len(calls)
    for call, layer_type in zip(calls, types, strict=False):
        expected = {"sliding_attention": window, "full_attention": 0}.get(layer_type)
        if call.window != expected:
            raise UnsupportedModelError(
                f"{type(model).__name__}: layer {call.layer} is {layer_type!r} and attended with "
                f"window {call.window}, expected {expected}"
            )


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))
