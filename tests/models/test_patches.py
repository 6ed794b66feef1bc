"""Patching in place: weights packed once, ties kept, dtypes as loaded, the rest refused."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    MAX_LEN,
    TinyRunner,
    make_batch,
    tiny_config,
    tiny_model,
    tokens,
)
from torch import nn

from detinfer import ops
from detinfer.errors import UnsupportedModelError
from detinfer.models.activations import ACTIVATIONS, is_activation, patch_activation
from detinfer.models.attention import attention_forward
from detinfer.models.context import ForwardContext, current, forward_context
from detinfer.models.patches import patch_model
from detinfer.models.routing import row_sum, top_k

PROBE = ForwardContext(None, None)
FAST = ForwardContext(None, None, deterministic=False)


def bits(a: Any) -> Any:
    return a.view(np.int32)


def prompt_logits(runner: TinyRunner, deterministic: bool = True) -> Any:
    return runner.logits(make_batch([(tokens(9, 0), 0, [2])], deterministic))


def test_packed_weights_are_not_kept_twice() -> None:
    runner = TinyRunner(tiny_model(tiny_config("llama")))
    config = runner.model.config
    for name, module in runner.model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.untyped_storage().nbytes() == 4, name
            assert module.weight.shape == (module.leaf.packed.n, module.leaf.packed.k), name
    assert runner.model.lm_head.weight.shape == (config.vocab_size, config.hidden_size)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_modules_share_one_packed_weight(tied: bool) -> None:
    model = TinyRunner(tiny_model(tiny_config("llama", tie_word_embeddings=tied))).model
    assert (model.lm_head.leaf is model.model.embed_tokens.leaf) is tied


def test_stock_copies_are_made_by_the_first_fast_step_only() -> None:
    runner = TinyRunner(tiny_model(tiny_config("llama")))
    leaf = runner.model.model.layers[0].mlp.up_proj.leaf
    prompt_logits(runner)
    assert leaf._stock is None
    prompt_logits(runner, deterministic=False)
    kept = leaf._stock
    prompt_logits(runner, deterministic=False)
    assert leaf._stock is kept is not None


def test_fast_steps_need_allow_fast() -> None:
    runner = TinyRunner(tiny_model(tiny_config("llama")), allow_fast=False)
    prompt_logits(runner)
    with pytest.raises(RuntimeError, match="allow_fast=False"):
        prompt_logits(runner, deterministic=False)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "cohere", "gpt_oss"])
def test_bf16_checkpoint_gives_the_bits_of_the_same_values_in_float32(architecture: str) -> None:
    config = tiny_config(architecture)
    narrow = TinyRunner(tiny_model(config, torch.bfloat16))
    widened = tiny_model(config, torch.bfloat16)
    for parameter in widened.parameters():
        parameter.data = parameter.data.float()
    linear = next(m for m in narrow.model.modules() if isinstance(m, nn.Embedding))
    assert linear.leaf.packed.storage == "bfloat16"
    np.testing.assert_array_equal(
        bits(prompt_logits(narrow)), bits(prompt_logits(TinyRunner(widened)))
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "olmo2", "mixtral", "gpt_oss"])
def test_bf16_activations_are_invariant_and_near_float32(architecture: str) -> None:
    config = tiny_config(architecture, initializer_range=0.05)
    runner = TinyRunner(tiny_model(config, torch.bfloat16), torch.bfloat16)
    full = prompt_logits(TinyRunner(tiny_model(config, torch.bfloat16)))
    ids = tokens(9, 0)
    alone = prompt_logits(runner)
    beside = make_batch([(tokens(20, 1), 0, [5]), (ids, 0, [2])])
    together = runner.logits(beside)[20:]
    np.testing.assert_array_equal(bits(alone), bits(together))
    assert 0 < np.abs(alone - full).max() < 0.1 * np.abs(full).max()


def test_other_parameters_become_the_activation_dtype_and_rotary_buffers_stay() -> None:
    model = TinyRunner(tiny_model(tiny_config("gemma4_text"), torch.bfloat16)).model
    dtypes = {t.dtype for t in [*model.parameters(), *model.buffers()]}
    assert dtypes == {torch.float32}


def test_embedding_scale_is_not_the_one_rounded_to_the_checkpoint() -> None:
    """Gemma rounds sqrt(hidden size) to the dtype it runs in: float32 here, whatever was stored."""
    model = tiny_model(tiny_config("gemma3_text"), torch.bfloat16)
    assert model.model.embed_tokens.embed_scale.item() == 8.5
    scale = TinyRunner(model).model.model.embed_tokens.embed_scale
    assert scale.item() == np.float32(72**0.5)


def test_report_names_each_layer_and_pin() -> None:
    report = TinyRunner(tiny_model(tiny_config("deepseek_v3"))).report
    assert report.cache_specs == [ops.LayerCacheSpec(6, 20, 10)] * 2
    assert list(report.rope_pins) == ["model.rotary_emb"]
    windows = TinyRunner(tiny_model(tiny_config("gemma2"))).report.calls
    assert [(c.window, c.softcap) for c in windows] == [(6, 4.0), (0, 4.0)]


@pytest.mark.parametrize(
    ("architecture", "overrides", "reason"),
    [
        ("falcon", {"alibi": True}, "ALiBi"),
        (
            "bloom",
            {"n_head": 6},
            r"BloomForCausalLM: attention ran in layers \[\], expected each of 2",
        ),
        ("mpt", {"d_model": 72, "n_heads": 6, "n_layers": 2}, r"MptModel\): its forward fails"),
        ("gpt_oss", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
    ],
)
def test_kinds_of_model_are_refused(
    architecture: str, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        TinyRunner(tiny_model(tiny_config(architecture, **overrides)))


def test_a_renormalising_embedding_is_refused_by_name() -> None:
    model = tiny_model(tiny_config("llama"))
    model.model.embed_tokens.max_norm = 1.0
    with pytest.raises(UnsupportedModelError, match=r"model\.embed_tokens \(Embedding\)"):
        TinyRunner(model)


def test_a_router_that_only_borrows_the_name_is_refused() -> None:
    model = tiny_model(tiny_config("mixtral"))
    gate = model.model.layers[1].mlp.gate
    own = type(gate)

    class MixtralTopKRouter(own):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor) -> Any:
            logits, weights, ids = super().forward(hidden_states)
            return logits, weights * weights, ids

    gate.__class__ = MixtralTopKRouter
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.gate \(MixtralTopKRouter\)"):
        TinyRunner(model)


def test_a_patched_model_needs_a_context() -> None:
    runner = TinyRunner(tiny_model(tiny_config("llama")))
    with pytest.raises(RuntimeError, match="outside forward_context"):
        runner.model(input_ids=torch.ones(1, 1, dtype=torch.int64))


def test_contexts_nest_and_end_with_an_error() -> None:
    outer, inner = PROBE, ForwardContext(None, None, deterministic=False)
    with forward_context(outer):
        with contextlib.suppress(ValueError), forward_context(inner):
            assert current() is inner
            raise ValueError
        assert current() is outer


class _Layer(nn.Module):
    layer_idx: int | None = 0
    is_causal = True


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"attention_mask": torch.zeros(1)}, "mask"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "is_causal"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"cu_seq_lens_q": torch.zeros(1)}, "cu_seq_lens_q"),
    ],
)
def test_attention_refuses_what_would_change_it(given: dict[str, Any], reason: str) -> None:
    q = k = v = torch.zeros(1, 2, 3, 4)
    arguments = {"attention_mask": None, "position_ids": torch.zeros(1), "use_cache": False} | given
    with forward_context(PROBE), pytest.raises(UnsupportedModelError, match=reason):
        attention_forward(_Layer(), q, k, v, **arguments)


def test_attention_refuses_modules_without_a_layer_or_causality() -> None:
    q = k = v = torch.zeros(1, 2, 3, 4)
    for name, value in (("layer_idx", None), ("is_causal", False)):
        module = _Layer()
        setattr(module, name, value)
        with forward_context(PROBE), pytest.raises(UnsupportedModelError, match="_Layer"):
            attention_forward(module, q, k, v, None)


@pytest.mark.parametrize(
    "name",
    ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu2", "swish"],
)
def test_activations_equal_their_own_forward(name: str) -> None:
    from transformers.activations import ACT2FN

    own, ours = ACT2FN[name], ACT2FN[name]
    assert is_activation(ours)
    patch_activation(ours)
    x = torch.linspace(-12, 12, 4001)
    with torch.inference_mode(), forward_context(PROBE):
        got = ours(x)
        torch.testing.assert_close(got, own(x), rtol=2e-6, atol=2e-6)
        pieces = torch.cat([ours(piece) for piece in x.split(7)])
    assert torch.equal(got.view(torch.int32), pieces.view(torch.int32))
    with torch.inference_mode(), forward_context(FAST):
        assert torch.equal(ours(x), own(x))


def test_every_activation_has_a_kernel() -> None:
    for name in set(ACTIVATIONS.values()):
        assert ops.activation(name, torch.ones(1)).shape == (1,)


def test_ties_in_routing_go_to_the_lowest_expert() -> None:
    values = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, -0.0, 0.0, -1.0, 0.0]])
    chosen, ids = top_k(values, 3)
    assert ids.tolist() == [[1, 2, 4], [0, 1, 2]]
    assert chosen.tolist() == [[3.0, 3.0, 3.0], [0.0, 0.0, 0.0]]


def test_row_sums_run_in_order() -> None:
    values = torch.tensor([[1.0, 2.0**-24, 2.0**-24], [2.0**-24, 2.0**-24, 1.0]])
    assert row_sum(values).flatten().tolist() == [1.0, 1.0 + 2.0**-23]


def test_experts_do_not_see_which_tokens_share_them() -> None:
    """A token's experts run on one row or many, and it may be routed beside any others."""
    runner = TinyRunner(tiny_model(tiny_config("mixtral")))
    block = runner.model.model.layers[0].mlp
    x = torch.randn(1, 40, 72, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode(), forward_context(PROBE):
        whole = block(x)
        for i in (0, 17, 39):
            part = block(x[:, i : i + 1])
            assert torch.equal(whole[:, i : i + 1].view(torch.int32), part.view(torch.int32))


@pytest.mark.parametrize("count", [3, 4])
def test_experts_are_summed_in_ascending_id(count: int) -> None:
    """Three numbers have several sums, of which the contract wants one."""
    runner = TinyRunner(tiny_model(tiny_config("mixtral", num_experts_per_tok=count)))
    experts = runner.model.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(6)
    x, weights = (
        torch.randn(30, 72, generator=generator),
        torch.rand(30, count, generator=generator),
    )
    ids = torch.stack([torch.randperm(5, generator=generator)[:count] for _ in range(30)])

    def sums(order: Any) -> torch.Tensor:
        rows = []
        for row in range(30):
            total = torch.zeros(1, 72)
            for slot in order(ids[row]).tolist():
                one = torch.tensor([[int(ids[row, slot])]])
                total = total + experts(x[row : row + 1], one, weights[row : row + 1, slot, None])
            rows.append(total)
        return torch.cat(rows)

    with torch.inference_mode(), forward_context(PROBE):
        got = experts(x, ids, weights)
        assert torch.equal(got.view(torch.int32), sums(torch.argsort).view(torch.int32))
        falling = sums(lambda one: torch.argsort(one, descending=True))
        assert not torch.equal(got, falling)  # the negative control


def test_patching_needs_a_linear_output_layer() -> None:
    model = tiny_model(tiny_config("llama"))
    model.lm_head = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="output layer is Identity"):
        patch_model(model, torch.float32, MAX_LEN, allow_fast=True)
