"""Deep supervision: every step of a puzzle is trained on, and starts from where the last ended.

A batch's places are at different steps of different puzzles; a puzzle that halts gives its place to
the next one, as requests do in serving.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.network import Network
from detinfer.recursive.tasks.task import Task
from detinfer.recursive.torch_kernels import TorchKernels
from detinfer.recursive.training.data import Pool
from detinfer.recursive.training.muon import Muon
from detinfer.recursive.training.recipe import Recipe

Weights = dict[str, Tensor]
BUFFERS = ("H_init", "L_init", "puzzle_emb.weights")  # drawn or zero, and not trained
HALTING_LOSS, HALTING_BIAS = 0.5, -5.0
GRADIENT_NORM, BETAS, MOMENTUM = 1.0, (0.9, 0.95), 0.95


class Figures(NamedTuple):
    """What one step was like: the loss, and shares of cells and of whole boards that were right."""

    loss: float
    cells: float
    boards: float


def initial_weights(config: RecursiveConfig, random: torch.Generator) -> Weights:
    """Draw weights: truncated normal, of a deviation of 1 / sqrt(inputs)."""
    weights = {}
    for name, shape in config.shapes().items():
        weight = torch.empty(shape)
        deviation = 1.0 if name.endswith("_init") else 1 / math.sqrt(shape[-1])
        torch.nn.init.trunc_normal_(
            weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=random
        )
        weights[name] = weight
    weights["q_head.weight"].zero_()
    weights["q_head.bias"].fill_(HALTING_BIAS)
    if config.prefix:
        weights["puzzle_emb.weights"].zero_()
    return weights


def network(config: RecursiveConfig, weights: Weights, task: Task) -> Network:
    """Build a network of PyTorch's kernels."""
    return Network(config, weights, TorchKernels(), torch.from_numpy(task.units))


class Trainer:
    """A training in progress.

    Args:
        config: the model's shape.
        recipe: what is done.
        seed: of weights, puzzles drawn and halting.
        pool: of puzzles.
        weights: to begin with; drawn if None.
    """

    def __init__(
        self,
        config: RecursiveConfig,
        recipe: Recipe,
        seed: int,
        pool: Pool,
        weights: Weights | None = None,
    ) -> None:
        self.config, self.recipe, self.pool, self.step = config, recipe, pool, 0
        self.random = torch.Generator().manual_seed(seed)
        self.weights = initial_weights(config, self.random)
        if weights is not None:
            self.weights = {name: weights[name].clone() for name in self.weights}
        self.average = {name: weight.clone() for name, weight in self.weights.items()}
        self.trained = [
            weight.requires_grad_() for name, weight in self.weights.items() if name not in BUFFERS
        ]
        self._optimisers = self._make_optimisers()
        self._network = network(config, self.weights, pool.task)
        batch = recipe.batch
        self._boards, self._answers = pool.draw(batch, self.random)
        self._y, self._z = (state.clone() for state in self._network.start(batch))
        self._age, self._least = torch.zeros(batch), torch.ones(batch)

    def _make_optimisers(self) -> tuple[torch.optim.Optimizer, ...]:
        """Muon for the layers' matrices, AdamW for what stands before and after them."""
        matrices = [w for name, w in self.weights.items() if name.startswith("L_level.")]
        others = [w for w in self.trained if all(w is not matrix for matrix in matrices)]
        decay = self.recipe.decay
        return (
            Muon(matrices, MOMENTUM, decay),
            torch.optim.AdamW(others, betas=BETAS, weight_decay=decay),
        )

    def advance(self) -> Figures:
        """Give every puzzle of the batch one supervision step, and the weights one update."""
        self.step += 1
        net = self._network
        y, z = self._y, self._z
        x = net.embed(self._boards)
        with torch.no_grad():
            for _ in range((self.recipe.cycles or self.config.cycles) - 1):
                y, z = net.recursion(x, y, z)
        y, z = net.recursion(x, y, z)
        logits, verdict = net.heads(y)
        right = logits.argmax(-1) == self._answers
        solved = right.all(1)
        loss = functional.cross_entropy(logits.flatten(0, 1), self._answers.flatten())
        loss = loss + HALTING_LOSS * functional.binary_cross_entropy_with_logits(
            verdict, solved.float()
        )
        self._update(loss)
        self._y, self._z = y.detach(), z.detach()
        self._refill(verdict.detach())
        return Figures(loss.item(), right.float().mean().item(), solved.float().mean().item())

    def _update(self, loss: Tensor) -> None:
        recipe, share = self.recipe, self.recipe.share_at(self.step)
        for weight in self.trained:
            weight.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.trained, GRADIENT_NORM)
        rates = recipe.matrix_rate, recipe.rate
        for optimiser, rate in zip(self._optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
        stays = recipe.average_at(self.step)
        with torch.no_grad():
            for name, weight in self.weights.items():
                self.average[name].lerp_(weight, 1 - stays)

    def _refill(self, verdict: Tensor) -> None:
        """Put new puzzles in the places of those that have halted."""
        self._age += 1
        done = ((verdict > 0) & (self._age >= self._least)) | (self._age >= self.recipe.most)
        count = int(done.sum())
        if not count:
            return
        self._boards[done], self._answers[done] = self.pool.draw(count, self.random)
        self._y[done], self._z[done] = self.weights["H_init"], self.weights["L_init"]
        self._age[done] = 0
        explores = torch.rand(count, generator=self.random) < self.recipe.explore
        drawn = torch.randint(2, self.recipe.most + 1, (count,), generator=self.random)
        self._least[done] = torch.where(explores, drawn.float(), torch.ones(count))

    def state(self) -> dict[str, Any]:
        """Everything the rest of the training depends on."""
        return {
            "step": self.step,
            "random": self.random.get_state(),
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "batch": [
                self._boards, self._answers, self._y, self._z, self._age, self._least
            ],
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step = state["step"]
        self.random.set_state(state["random"])
        with torch.no_grad():
            for name, weight in state["weights"].items():
                self.weights[name].copy_(weight)
        self.average = state["average"]
        for optimiser, past in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(past)
        (self._boards, self._answers, self._y, self._z, self._age, self._least) = state["batch"]
