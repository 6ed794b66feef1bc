"""Mixture-of-experts routers: which experts a token goes to, and with what weight.

One class per formula in transformers. ``torch.topk`` does not say which of two equal values it
takes, so experts are chosen by a stable descending sort: ties go to the lowest expert id.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detinfer import ops
from detinfer.models.context import current
from detinfer.models.leaves import LeafWeight, PackedLinear

Routing = tuple[Tensor, Tensor, Tensor]  # logits [T, E], weights [T, k], expert ids [T, k]


class ContractRouter(nn.Module):
    """What the formulas share: the packed router weight and the step's mode."""

    leaf: LeafWeight
    top_k: int

    def forward(self, hidden_states: Tensor) -> Routing:
        """[..., D] -> router logits, weights of the chosen experts, their ids."""
        return self.route(hidden_states.reshape(-1, hidden_states.shape[-1]))

    def route(self, x: Tensor) -> Routing:
        """The family's formula. x: [T, D]."""
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
        """The k largest, then softmax."""
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
        scores = _sigmoid(logits)
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


class SparseMixer(PackedLinear):
    """phimoe: two experts, each weighed by a softmax over the logits near its own.

    Sits in front of the class's own forward, which calls ``sparsemixer`` on stock ops.
    """

    router_jitter_noise: float

    def forward(self, hidden_states: Tensor) -> Routing:  # type: ignore[override]
        """[T, D] -> router logits, weights and ids of two experts."""
        logits = PackedLinear.forward(self, hidden_states)
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


ROUTERS: dict[str, type[nn.Module]] = {
    "MixtralTopKRouter": SoftmaxTopK,
    "Qwen2MoeTopKRouter": SoftmaxTopK,
    "Qwen3MoeTopKRouter": SoftmaxTopK,
    "OlmoeTopKRouter": SoftmaxTopK,
    "GptOssTopKRouter": TopKSoftmax,
    "GraniteMoeTopKRouter": TopKSoftmax,
    "DeepseekV3TopkRouter": GroupedSigmoid,
    "PhimoeTopKRouter": SparseMixer,
}


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension, descending; of equal ones the lowest index first."""
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


def _sigmoid(x: Tensor) -> Tensor:
    return ops.activation("sigmoid", x) if current().deterministic else x.sigmoid()
