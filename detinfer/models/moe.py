"""Mixture-of-experts blocks: experts over packed weights, combined in ascending expert id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detinfer import ops
from detinfer.errors import UnsupportedModelError
from detinfer.models.activations import elementary
from detinfer.models.leaves import LeafWeight, placeholder
from detinfer.models.swap import swap_class

_EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")


class PackedExperts(nn.Module):
    """A module of stacked expert weights, one packed weight per expert and projection."""

    expert_leaves: dict[str, list[LeafWeight]]
    _apply_gate: Callable[[Tensor], Tensor]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum over a token's experts of weight · expert(token).

        Each expert runs once on all tokens routed to it; a token's sum starts at +0 and adds its
        experts in ascending id, so it does not depend on the other tokens.

        Args:
            hidden_states: [T, D]
            top_k_index: distinct expert ids of each token. [T, k]
            top_k_weights: [T, k]
        """
        total = torch.zeros_like(hidden_states)
        for expert in sorted(set(top_k_index.flatten().tolist())):
            rows, slots = torch.where(top_k_index == expert)
            inner = self._apply_gate(self._project("gate_up_proj", expert, hidden_states[rows]))
            out = self._project("down_proj", expert, inner)
            weighted = out * top_k_weights[rows, slots, None]
            total[rows] = total[rows] + weighted.to(total.dtype)
        return total

    def _project(self, name: str, expert: int, x: Tensor) -> Tensor:
        bias = getattr(self, f"{name}_bias", None)
        leaf = self.expert_leaves[name][expert]
        return leaf.linear(x, None if bias is None else bias[expert])


class GptOssPackedExperts(PackedExperts):
    """gpt_oss: interleaved gate and up, clamped, ``(up + 1) · gate · sigmoid(alpha · gate)``."""

    alpha: float
    limit: float

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate = gate_up[..., ::2].clamp(max=self.limit)
        up = gate_up[..., 1::2].clamp(min=-self.limit, max=self.limit)
        return (up + 1) * (gate * elementary("sigmoid", gate * self.alpha))


class ContractQwen2MoeBlock(nn.Module):
    """qwen2_moe: its block's own ``F.sigmoid`` replaced."""

    gate: nn.Module
    experts: nn.Module
    shared_expert: nn.Module
    shared_expert_gate: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[1, T, D] -> [1, T, D]."""
        x = hidden_states.view(-1, hidden_states.shape[-1])
        _, weights, ids = self.gate(x)
        routed = self.experts(x, ids, weights)
        share = elementary("sigmoid", self.shared_expert_gate(x))
        out: Tensor = routed + share * self.shared_expert(x)
        return out.reshape(hidden_states.shape)


BLOCKS: dict[str, type[nn.Module]] = {"Qwen2MoeSparseMoeBlock": ContractQwen2MoeBlock}


def is_experts(module: nn.Module) -> bool:
    """Return whether the module holds stacked weights of several experts."""
    down = getattr(module, "down_proj", None)
    return isinstance(down, nn.Parameter) and down.ndim == 3


def patch_experts(
    module: nn.Module,
    name: str,
    activation_dtype: torch.dtype,
    allow_fast: bool,
    take: Callable[[nn.Parameter], Any | None],
) -> None:
    """Pack an experts module in place, one weight at a time.

    Args:
        module: with stacked weights. [experts, outputs, inputs]
        name: qualified name, for the error.
        activation_dtype: dtype between ops.
        allow_fast: see ``LeafWeight``.
        take: finds what is packed already of a parameter, a weight an expert; None for nothing.

    Raises:
        UnsupportedModelError: a kind of experts whose combination is not known here.
    """
    own = type(module).__name__
    if not getattr(module, "has_gate", False) or getattr(module, "has_post_expert_norm", False):
        raise UnsupportedModelError(f"{name} ({own}): experts without a gate or with a norm")
    leaves = {}
    for projection in _EXPERT_WEIGHTS:
        weight = getattr(module, projection)
        stacked = weight.data.transpose(1, 2) if module.is_transposed else weight.data
        packed = None if module.is_transposed else take(weight)
        if packed is None:
            packed = (ops.pack(expert, activation_dtype) for expert in stacked)
        leaves[projection] = [LeafWeight(expert, allow_fast) for expert in packed]
        setattr(module, projection, placeholder(weight.shape, activation_dtype))
    module.expert_leaves = leaves  # type: ignore[assignment]
    swap_class(module, GptOssPackedExperts if own == "GptOssExperts" else PackedExperts)
