"""RMSNorm and LayerNorm families: which formula each class is, and the swap that runs ours.

RMSNorm is several functions that differ only in where they round (docs/arithmetic.md, rule 2). The
class name says which; the class's own forward must agree at load, or the model is refused.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from detinfer import ops
from detinfer.errors import UnsupportedModelError
from detinfer.models.context import ForwardContext, forward_context
from detinfer.models.swap import own_class, swap_formula

_SCALE_ROUNDED = (
    "Arcee BitNet DeepseekV2 DeepseekV3 Ernie4_5 Exaone4 Glm Glm4 Granite GraniteMoe Llama "
    "Llama4Text Mistral Mixtral Olmoe Phi3 Qwen2 Qwen2Moe Qwen3 Qwen3Moe SeedOss SmolLM3"
)
RMS_FAMILIES = {
    **{f"{family}RMSNorm": "scale_rounded" for family in _SCALE_ROUNDED.split()},
    **{f"{f}RMSNorm": "round_scaled" for f in ("Olmo2", "Olmo3", "GptOss", "Helium", "Gemma4")},
    **{f"{f}RMSNorm": "one_plus" for f in ("Gemma", "Gemma2", "Gemma3")},
}

# Least share of bfloat16 results that must equal the class's own: another rounding order agrees on
# about 70 %, another reduction order on all but a few in a thousand.
_AGREEMENT = 0.98


class ContractRMSNorm(nn.Module):
    """Any RMSNorm family, by ``rms_variant``."""

    rms_variant: str
    eps: float
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D] in the same dtype."""
        eps = self.variance_epsilon if hasattr(self, "variance_epsilon") else self.eps
        return ops.rms_norm(hidden_states, getattr(self, "weight", None), eps, self.rms_variant)


class ContractLayerNorm(nn.Module):
    """``nn.LayerNorm`` over the last dimension."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def _scale(self) -> Tensor | None:
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        """[..., D] -> [..., D] in the same dtype."""
        return ops.layer_norm(input, self._scale(), self.bias, self.eps)


class ContractLayerNorm1P(ContractLayerNorm):
    """Nemotron's: scaled by 1 + weight."""

    weight: Tensor

    def _scale(self) -> Tensor | None:
        return self.weight + 1.0


class ContractCohereLayerNorm(nn.Module):
    """Cohere's: no bias; the weight may be one row per head. [D] or [heads, D]."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] or [..., heads, D], same shape and dtype."""
        if self.weight.ndim == 1:
            return ops.layer_norm(hidden_states, self.weight, None, self.variance_epsilon)
        normed = ops.layer_norm(hidden_states.float(), None, None, self.variance_epsilon)
        return (self.weight.float() * normed).to(hidden_states.dtype)


class ContractPlainLayerNorm(nn.Module):
    """OLMo's: neither weight nor bias."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., D] -> [..., D] in the same dtype."""
        return ops.layer_norm(hidden_states, None, None, 1e-5)


_LAYER_NORMS: dict[str, type[nn.Module]] = {
    "LayerNorm": ContractLayerNorm,
    "NemotronLayerNorm1P": ContractLayerNorm1P,
    "CohereLayerNorm": ContractCohereLayerNorm,
    "Cohere2LayerNorm": ContractCohereLayerNorm,
    "OlmoLayerNorm": ContractPlainLayerNorm,
}


def is_norm(module: nn.Module) -> bool:
    """Return whether the module's class is one of the families above."""
    return type(module).__name__ in RMS_FAMILIES or type(module).__name__ in _LAYER_NORMS


def patch_norm(module: nn.Module, name: str, verified: set[Any]) -> None:
    """Swap a norm in place.

    Args:
        module: one for which ``is_norm`` holds.
        name: qualified name, for the error.
        verified: classes already compared in this load; added to.

    Raises:
        UnsupportedModelError: our formula does not give what the class's own forward gives.
    """
    own = type(module)
    shape = getattr(module, "normalized_shape", None)
    if own is nn.LayerNorm and len(shape or ()) != 1:
        raise UnsupportedModelError(
            f"{name} (LayerNorm): normalises over {shape}, expected one dimension"
        )
    original = copy.deepcopy(module) if own not in verified else None
    if own.__name__ in RMS_FAMILIES:
        module.rms_variant = RMS_FAMILIES[own.__name__]  # type: ignore[assignment]
        swap_formula(module, ContractRMSNorm)
    else:
        swap_formula(module, _LAYER_NORMS[own.__name__])
    if original is not None:
        _verify(module, original, name)
        verified.add(own)


def _verify(module: nn.Module, original: nn.Module, name: str) -> None:
    """Compare with the class's own forward on random rows, in binary32 and bfloat16."""
    generator = torch.Generator().manual_seed(0)
    ours = copy.deepcopy(module)
    weight = getattr(original, "weight", None)
    shape = getattr(original, "normalized_shape", (64,)) if weight is None else weight.shape
    x = torch.randn(64, *shape, generator=generator)
    for parameter in (n for n in ("weight", "bias") if getattr(original, n, None) is not None):
        values = 1 + 0.3 * torch.randn(shape, generator=generator)
        for side in (original, ours):
            setattr(side, parameter, nn.Parameter(values.clone(), requires_grad=False))
    # The formula is what is in question, not a profile's kernels.
    portable = ops.use(ops.PORTABLE)
    with torch.inference_mode(), forward_context(ForwardContext(None, None)), portable:
        close = torch.allclose(ours(x), original(x), rtol=1e-5, atol=1e-5)
        low, ours_low, original_low = x.bfloat16(), ours.bfloat16(), original.bfloat16()
        equal = (ours_low(low) == original_low(low)).float().mean().item()
    if not close or equal < _AGREEMENT:
        raise UnsupportedModelError(
            f"{name} ({own_class(module).__name__}): its own forward differs from the formula "
            f"known by that name ({equal:.0%} equal in bfloat16)"
        )
