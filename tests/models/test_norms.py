"""Norm families: each class is the formula its name stands for, rounding by rounding."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from detinfer import ops
from detinfer.errors import UnsupportedModelError
from detinfer.models.context import ForwardContext, forward_context
from detinfer.models.norms import RMS_FAMILIES, is_norm, patch_norm

SIZE = 72
NORMS: dict[str, Any] = {
    "llama": lambda: LlamaRMSNorm(SIZE),
    "gemma3": lambda: Gemma3RMSNorm(SIZE),
    "gemma4": lambda: Gemma4RMSNorm(SIZE),
    "gemma4_plain": lambda: Gemma4RMSNorm(SIZE, with_scale=False),
    "olmo2": lambda: Olmo2RMSNorm(SIZE),
    "layer_norm": lambda: nn.LayerNorm(SIZE),
    "layer_norm_without_bias": lambda: nn.LayerNorm(SIZE, bias=False),
    "nemotron": lambda: NemotronLayerNorm1P(SIZE),
    "olmo": lambda: OlmoLayerNorm(SIZE),
    "cohere": lambda: CohereLayerNorm(SIZE),
    "cohere_per_head": lambda: CohereLayerNorm((4, SIZE)),
}


def randomised(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in norm.parameters():
        parameter.data = 1 + 0.3 * torch.randn(parameter.shape, generator=generator)
    return norm.requires_grad_(False)


def rows(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 5, 4, SIZE, generator=torch.Generator().manual_seed(4)).to(dtype)


@pytest.mark.parametrize("name", sorted(NORMS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_swapped_norm_equals_its_own_forward(name: str, dtype: torch.dtype) -> None:
    own = randomised(NORMS[name]()).to(dtype)
    ours = copy.deepcopy(own)
    assert is_norm(ours)
    patch_norm(ours, name, set())
    x = rows(dtype)
    with torch.inference_mode(), forward_context(ForwardContext(None, None)):
        got, expected = ours(x), own(x)
    assert got.dtype == expected.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert isinstance(ours, type(own))


@pytest.mark.parametrize("name", sorted(NORMS))
def test_rows_do_not_see_each_other(name: str) -> None:
    norm = randomised(NORMS[name]())
    patch_norm(norm, name, set())
    x = rows(torch.float32)
    with torch.inference_mode(), forward_context(ForwardContext(None, None)):
        whole, part = norm(x), norm(x[:1, 2:3])
    assert torch.equal(whole[:1, 2:3].view(torch.int32), part.view(torch.int32))


@pytest.mark.parametrize("name", sorted(NORMS))
def test_fast_steps_run_the_own_forward(name: str) -> None:
    own = randomised(NORMS[name]())
    ours = copy.deepcopy(own)
    patch_norm(ours, "norm", set())
    x = rows(torch.float32)
    with torch.inference_mode():
        with forward_context(ForwardContext(None, None, deterministic=False)):
            assert torch.equal(ours(x), own(x))
        with forward_context(ForwardContext(None, None)):
            assert not torch.equal(ours(x), own(x))


def test_fast_steps_keep_the_dtype_where_the_scale_is_wider() -> None:
    norm = randomised(LlamaRMSNorm(SIZE))
    patch_norm(norm, "norm", set())
    for deterministic in (True, False):
        context = ForwardContext(None, None, deterministic=deterministic)
        with torch.inference_mode(), forward_context(context):
            assert norm(rows(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("variant", sorted(ops.RMS_VARIANTS))
def test_a_family_filed_under_another_variant_is_refused(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check at load can tell the variants apart, which differ in roundings only."""
    for name in ("llama", "olmo2", "gemma3"):
        norm = randomised(NORMS[name]()).requires_grad_(False)
        right = RMS_FAMILIES[type(norm).__name__]
        monkeypatch.setitem(RMS_FAMILIES, type(norm).__name__, variant)
        if variant == right:
            patch_norm(norm, name, set())
        else:
            with pytest.raises(UnsupportedModelError, match=rf"{name} \({type(norm).__name__}\)"):
                patch_norm(norm, name, set())
        monkeypatch.setitem(RMS_FAMILIES, type(norm).__name__, right)


def test_a_class_that_only_borrows_the_name_is_refused() -> None:
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(SIZE))
            self.variance_epsilon = 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x / x.abs().mean(-1, keepdim=True)

    with pytest.raises(UnsupportedModelError, match=r"model\.norm \(LlamaRMSNorm\)"):
        patch_norm(LlamaRMSNorm(), "model.norm", set())


def test_norms_over_several_dimensions_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"expected one dimension"):
        patch_norm(nn.LayerNorm((4, 8)), "norm", set())


def test_unknown_norms_are_left_for_the_audit() -> None:
    assert not is_norm(nn.RMSNorm(8))
    assert not is_norm(nn.GroupNorm(2, 8))


def test_all_zero_rows_stay_finite() -> None:
    for make in NORMS.values():
        norm = randomised(make())
        patch_norm(norm, "norm", set())
        with torch.inference_mode(), forward_context(ForwardContext(None, None)):
            assert np.isfinite(norm(torch.zeros(1, 4, SIZE)).numpy()).all()
