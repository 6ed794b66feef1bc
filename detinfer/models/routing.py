"""Mixture-of-experts routers: which experts a token goes to, and with what weight.

One class per formula in transformers. ``torch.topk`` does not say which of two equal values it
takes, so experts are chosen by a stable descending sort: ties go to the lowest expert id.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from detinfer import ops
from detinfer.errors import UnsupportedModelError
from detinfer.models.activations import elementary
from detinfer.models.context import ForwardContext, current, forward_context
from detinfer.models.leaves import LeafWeight
from detinfer.models.swap import own_class, swap_class

Routing = tuple[Tensor, Tensor, Tensor]  # logits [T, E], weights [T, k], expert ids [T, k]


class ContractRouter(nn.Module):
    """What the formulas share: the packed router weight, and the order of the results.

    Attributes:
        output_order: where the class's own forward has logits, weights and ids; it differs between
            releases of transformers.
    """

    leaf: LeafWeight
    top_k: int
    output_order: tuple[int, ...]

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """[..., D] -> router logits, weights of the chosen experts and their ids, in some order."""
        routing = self.route(hidden_states.reshape(-1, hidden_states.shape[-1]))
        return tuple(routing[i] for i in self.output_order)

    def route(self, x: Tensor) -> Routing:
        """Return the family's formula. x: [T, D]."""
        raise NotImplementedError


class SoftmaxTopK(ContractRouter):
    """mixtral, qwen2_moe, qwen3_moe, olmoe: the largest probabilities, renormalised or not."""

    norm_topk_prob: bool

    def route(self, x: Tensor) -> Routing:
        """Softmax, then the k largest."""
        logits = self.leaf.linear(x)
        weights, ids = top_k(_softmax(logits), self.top_k)
        mixtral = not hasattr(self, "norm_topk_prob")
        if mixtral or self.norm_topk_prob:
            weights = weights / row_sum(weights)
        return logits, weights if mixtral else weights.to(logits.dtype), ids


class TopKSoftmax(ContractRouter):
    """gpt_oss, granitemoe: the largest logits, softmax over those."""

    def route(self, x: Tensor) -> Routing:
        """Return the k largest, then softmax."""
        logits = self.leaf.linear(x, getattr(self, "bias", None))
        values, ids = top_k(logits, self.top_k)
        return logits, _softmax(values).to(x.dtype), ids


class GroupedSigmoid(ContractRouter):
    """deepseek_v3: sigmoid scores, the best groups by their two best corrected scores."""

    e_score_correction_bias: Tensor
    num_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float

    def route(self, x: Tensor) -> Routing:
        """Scores, groups, experts, weights, all in binary32."""
        logits = self.leaf.linear(x.to(torch.float32))
        scores = elementary("sigmoid", logits)
        corrected = scores + self.e_score_correction_bias
        grouped = corrected.view(x.shape[0], self.num_group, -1)
        group_score = row_sum(top_k(grouped, 2)[0]).squeeze(-1)
        groups = top_k(group_score, self.topk_group)[1]
        chosen = torch.zeros_like(group_score, dtype=torch.bool).scatter(1, groups, True)
        allowed = chosen.unsqueeze(-1).expand_as(grouped).reshape(corrected.shape)
        ids = top_k(corrected.masked_fill(~allowed, float("-inf")), self.top_k)[1]
        weights = scores.gather(1, ids)
        if self.norm_topk_prob:
            weights = weights / (row_sum(weights) + 1e-20)
        return logits, weights * self.routed_scaling_factor, ids


class SparseMixer(ContractRouter):
    """phimoe: two experts, each weighed by a softmax over the logits near its own."""

    router_jitter_noise: float

    def route(self, x: Tensor) -> Routing:
        """Return the best expert, then the best of the others."""
        logits = self.leaf.linear(x)
        first, first_weight = self._choose(logits, logits)
        rest = logits.scatter(1, first, float("-inf"))
        second, second_weight = self._choose(rest, logits)
        weights = torch.cat((first_weight, second_weight), dim=1)
        return logits, weights.to(logits.dtype), torch.cat((first, second), dim=1)

    def _choose(self, candidates: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        best, expert = top_k(candidates, 1)
        distance = (best - logits) / torch.maximum(logits.abs(), best)
        near = candidates.masked_fill(distance > 2 * self.router_jitter_noise, float("-inf"))
        return expert, _softmax(near).gather(1, expert)


ROUTERS: dict[str, type[ContractRouter]] = {
    "MixtralTopKRouter": SoftmaxTopK,
    "Qwen2MoeTopKRouter": SoftmaxTopK,
    "Qwen3MoeTopKRouter": SoftmaxTopK,
    "OlmoeTopKRouter": SoftmaxTopK,
    "GptOssTopKRouter": TopKSoftmax,
    "GraniteMoeTopKRouter": TopKSoftmax,
    "DeepseekV3TopkRouter": GroupedSigmoid,
    "PhimoeTopKRouter": SparseMixer,
}


def patch_router(module: nn.Module, name: str, leaf: LeafWeight) -> None:
    """Swap a router in place, after comparing it with its class's own forward.

    Args:
        module: one whose class is in ``ROUTERS``, its weight still in place.
        name: qualified name, for the error.
        leaf: its weight, packed.

    Raises:
        UnsupportedModelError: our formula does not give what the class's own forward gives.
    """
    own = copy.deepcopy(module).float()
    x = torch.randn(16, leaf.packed.k, generator=torch.Generator().manual_seed(0))
    weight = module.weight
    swap_class(module, ROUTERS[type(module).__name__])
    assert isinstance(module, ContractRouter)
    assert isinstance(weight, nn.Parameter)
    # The formula is what is in question, not a profile's kernels.
    portable = ops.use(ops.PORTABLE)
    with torch.inference_mode(), forward_context(ForwardContext(None, None)), portable:
        module.leaf = LeafWeight(ops.pack(weight.data, torch.float32), allow_fast=False)
        ours, theirs = module.route(x), own(x)
    module.leaf = leaf
    order = _order(ours, theirs)
    if order is None:
        raise UnsupportedModelError(
            f"{name} ({own_class(module).__name__}): its own forward differs from the formula "
            "known by that name"
        )
    module.output_order = order


def _order(ours: Routing, theirs: tuple[Tensor, ...]) -> tuple[int, ...] | None:
    """Return where ``theirs`` has logits (0), weights (1) and ids (2); None if it has others."""
    logits, weights, ids = ours
    kinds = [
        2
        if not t.is_floating_point()
        else int(t.shape != logits.shape or not torch.allclose(t, logits, atol=1e-4))
        for t in theirs
    ]
    if sorted(kinds) != [0, 1, 2]:
        return None
    their_weights, their_ids = theirs[kinds.index(1)], theirs[kinds.index(2)]
    spread = torch.zeros_like(logits)
    same = torch.allclose(
        spread.scatter(1, ids, weights),
        spread.scatter(1, their_ids, their_weights.to(spread.dtype)),
        atol=1e-4,
    )
    return tuple(kinds) if same else None


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest of the last dimension, descending; of equals the lowest index first."""
    ordered, index = torch.sort(values, dim=-1, descending=True, stable=True)
    return ordered[..., :k], index[..., :k]


def row_sum(values: Tensor) -> Tensor:
    """Sum of the last dimension, ascending index, single operations. [..., k] -> [..., 1]."""
    total = values[..., :1]
    for i in range(1, values.shape[-1]):
        total = total + values[..., i : i + 1]
    return total


def _softmax(x: Tensor) -> Tensor:
    return ops.softmax(x) if current().deterministic else x.softmax(dim=-1, dtype=torch.float32)
