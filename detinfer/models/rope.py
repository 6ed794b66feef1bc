"""Rotary embeddings from tables: what is pinned at load, and the swap that looks it up."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from detinfer.errors import UnsupportedModelError
from detinfer.models.rope_frequencies import ROPE_TYPES, RopeSpec, rope_frequencies
from detinfer.models.rope_table import RopeTable, build_rope_table
from detinfer.models.swap import own_class, swap_class

# How an embedding spreads F frequencies over its last dimension.
_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "halves": lambda t: torch.cat((t, t), dim=-1),
    "pairs": lambda t: torch.repeat_interleave(t, 2, dim=-1),
    "single": lambda t: t,
}
_PROBE_POSITIONS = 16
_LEAST_POSITIONS = 32  # of a table: what is tried at load must fit, however little is served


class TableRotary(nn.Module):
    """A rotary embedding that reads cos and sin by absolute position.

    Attributes:
        rope_tables: by layer type; the only key is None where the model has one table.
        rope_layout: a key of ``_LAYOUTS``.
        rope_keeps_float32: whether the class hands out binary32 whatever the activation dtype.
    """

    rope_tables: dict[str | None, RopeTable]
    rope_layout: str
    rope_keeps_float32: bool

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cos and sin of ``position_ids`` [1, T] as the class's own forward lays them out."""
        table, spread = self.rope_tables[layer_type], _LAYOUTS[self.rope_layout]
        dtype = torch.float32 if self.rope_keeps_float32 else x.dtype
        cos, sin = spread(table.cos[position_ids]), spread(table.sin[position_ids])
        return cos.to(dtype), sin.to(dtype)


def is_rotary(module: nn.Module) -> bool:
    """Return whether the module makes cos and sin from inverse frequencies."""
    return type(module).__name__.endswith("RotaryEmbedding") and hasattr(module, "rope_type")


def patch_rotary(module: nn.Module, name: str, max_model_len: int) -> dict[str, str]:
    """Swap a rotary embedding in place.

    Args:
        module: one for which ``is_rotary`` holds.
        name: qualified name, for errors and pins.
        max_model_len: positions served, and what length-dependent types are pinned to.

    Returns:
        What the frequencies were pinned to, by name, for the fingerprint.

    Raises:
        UnsupportedModelError: the formula is unknown or differs from the class's own.
    """
    types: list[str | None] = (
        list(module.rope_type) if isinstance(module.rope_type, dict) else [None]
    )
    layouts = {_layout(module, name, layer_type) for layer_type in types}
    tables, pins = {}, {}
    for layer_type in types:
        spec = _spec(module, name, layer_type, max_model_len)
        try:
            inv_freq, factor = rope_frequencies(spec)
            table = build_rope_table(inv_freq, max(max_model_len, _LEAST_POSITIONS), factor)
        except (KeyError, ValueError, TypeError, ArithmeticError) as error:
            raise UnsupportedModelError(
                f"{name} ({own_class(module).__name__}): rope_parameters {dict(spec.params)} "
                f"cannot be followed ({type(error).__name__}: {error})"
            ) from error
        _compare(module, name, layer_type, spec, inv_freq, factor)
        tables[layer_type] = table
        digest = hashlib.sha256(inv_freq.tobytes() + np.float32(factor).tobytes()).hexdigest()[:16]
        pins[name if layer_type is None else f"{name}.{layer_type}"] = f"{spec.rope_type}:{digest}"
    if len(layouts) != 1:
        raise UnsupportedModelError(
            f"{name}: layer types lay out cos and sin differently: {layouts}"
        )
    layout, keeps_float32 = layouts.pop()
    module.rope_tables, module.rope_layout = tables, layout  # type: ignore[assignment]
    module.rope_keeps_float32 = keeps_float32  # type: ignore[assignment]
    swap_class(module, TableRotary)
    return pins


def _attribute(module: nn.Module, layer_type: str | None, what: str) -> Any:
    return getattr(module, what if layer_type is None else f"{layer_type}_{what}")


def _spec(module: nn.Module, name: str, layer_type: str | None, max_model_len: int) -> RopeSpec:
    params = module.config.rope_parameters  # type: ignore[union-attr]
    params = dict(params if layer_type is None else params[layer_type])  # type: ignore[arg-type, index]
    rope_type = params.get("rope_type", "default")
    if rope_type not in ROPE_TYPES or "long_mscale" in params:
        raise UnsupportedModelError(
            f"{name} ({own_class(module).__name__}): rope_type {rope_type!r} follows the batch or "
            f"is unknown, expected one of {', '.join(sorted(ROPE_TYPES))}"
        )
    count = _attribute(module, layer_type, "inv_freq").numel()
    for factors in ("long_factor", "short_factor"):
        if len(given := params.get(factors) or [0] * count) != count:
            raise UnsupportedModelError(
                f"{name} ({own_class(module).__name__}): rope_parameters.{factors}: got "
                f"{len(given)} numbers, expected {count}, one for each rotated pair"
            )
    return RopeSpec(
        params=params,
        count=count,
        max_position_embeddings=int(module.config.max_position_embeddings),  # type: ignore[union-attr, arg-type]
        max_model_len=max_model_len,
    )


def _compare(
    module: nn.Module,
    name: str,
    layer_type: str | None,
    spec: RopeSpec,
    inv_freq: np.ndarray[Any, np.dtype[np.float32]],
    factor: float,
) -> None:
    """Our frequencies against the model's own, which PyTorch computed in binary32."""
    theirs = _attribute(module, layer_type, "inv_freq")
    scaling = _attribute(module, layer_type, "attention_scaling")
    if spec.rope_type in ("dynamic", "longrope"):
        kwargs = {} if layer_type is None else {"layer_type": layer_type}
        theirs, scaling = ROPE_INIT_FUNCTIONS[spec.rope_type](
            module.config, torch.device("cpu"), seq_len=spec.max_model_len, **kwargs
        )
    if not (
        np.allclose(inv_freq, theirs.float().numpy(), rtol=2e-5, atol=0)
        and np.isclose(factor, float(scaling), rtol=1e-6)
    ):
        raise UnsupportedModelError(
            f"{name} ({own_class(module).__name__}): its frequencies differ from the "
            f"{spec.rope_type!r} formula"
        )


def _layout(module: nn.Module, name: str, layer_type: str | None) -> tuple[str, bool]:
    """Return how the class lays out cos and sin, seen from its own forward at a few positions."""
    positions = torch.arange(_PROBE_POSITIONS).unsqueeze(0)
    kwargs = {} if layer_type is None else {"layer_type": layer_type}
    with torch.inference_mode():
        cos, sin = module(torch.zeros(1, dtype=torch.bfloat16), positions, **kwargs)
        keeps_float32 = cos.dtype == torch.float32
        cos, sin = module(torch.zeros(1), positions, **kwargs)
        angles = positions[..., None].float() * _attribute(module, layer_type, "inv_freq").float()
        scaling = _attribute(module, layer_type, "attention_scaling")
        for layout, spread in _LAYOUTS.items():
            expected = spread(angles.cos() * scaling), spread(angles.sin() * scaling)
            if cos.shape == expected[0].shape and all(
                torch.allclose(a, b, atol=1e-4) for a, b in zip((cos, sin), expected, strict=True)
            ):
                return layout, keeps_float32
    raise UnsupportedModelError(
        f"{name} ({own_class(module).__name__}): unknown layout of cos and sin {tuple(cos.shape)}"
    )
