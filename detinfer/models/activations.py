"""Activations as elementary functions of the contract (rule 4): modules by class, and functions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detinfer import ops
from detinfer.models.context import current
from detinfer.models.swap import swap_formula

# By class name: transformers' own classes and torch.nn's.
ACTIVATIONS = {
    "SiLUActivation": "silu",
    "SiLU": "silu",
    "GELUActivation": "gelu",
    "NewGELUActivation": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}


class ContractActivation(nn.Module):
    """An elementary function, by ``activation_name``."""

    activation_name: str

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise, one rounding to the input's dtype."""
        return ops.activation(self.activation_name, input)


class ContractQuickGELU(nn.Module):
    """``x · sigmoid(1.702 x)``, rounded after each."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        return input * ops.activation("sigmoid", 1.702 * input)


class ContractSquaredReLU(nn.Module):
    """``relu(x)²`` as one product."""

    def forward(self, input: Tensor) -> Tensor:
        """Elementwise."""
        positive = input.relu()
        return positive * positive


_OWN_FORMULAS: dict[str, type[nn.Module]] = {
    "QuickGELUActivation": ContractQuickGELU,
    "ReLUSquaredActivation": ContractSquaredReLU,
}


def elementary(name: str, x: Tensor) -> Tensor:
    """Return ``sigmoid`` or ``tanh`` by the current step's mode."""
    if current().deterministic:
        return ops.activation(name, x)
    stock: Tensor = getattr(torch, name)(x)
    return stock


def is_activation(module: nn.Module) -> bool:
    """Return whether the module's class is one of those above."""
    return type(module).__name__ in ACTIVATIONS or type(module).__name__ in _OWN_FORMULAS


def patch_activation(module: nn.Module) -> None:
    """Swap an activation in place."""
    name = type(module).__name__
    if name in _OWN_FORMULAS:
        swap_formula(module, _OWN_FORMULAS[name])
    else:
        module.activation_name = ACTIVATIONS[name]  # type: ignore[assignment]
        swap_formula(module, ContractActivation)
