"""Muon in binary32: torch.optim.Muon orthogonalises in bfloat16, which most CPUs only emulate.

There it took a fifth of a training's time. The method and its constants are Keller Jordan's
(kellerjordan.github.io/posts/muon).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

ROUNDS, COEFFICIENTS, LEAST = 5, (3.4445, -4.7750, 2.0315), 1e-7


class Muon(torch.optim.Optimizer):
    """Steps whose singular values are all near 1, along a gradient with Nesterov's momentum.

    Args:
        params: matrices.
        momentum: how much of the mean gradient stays.
        decay: of weights, by each step's rate.
    """

    def __init__(self, params: Iterable[Tensor], momentum: float, decay: float) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["mean"] = torch.zeros_like(weight)
                mean = state["mean"].lerp_(weight.grad, 1 - momentum)
                way = orthogonalized(weight.grad.lerp(mean, momentum))
                rows, columns = weight.shape
                weight.mul_(1 - rate * group["decay"])
                weight.add_(way, alpha=-rate * math.sqrt(max(1, rows / columns)))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return nearly U V^T of the matrix U S V^T, by Newton and Schulz' iteration."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=LEAST)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
