"""Every architecture runs on our kernels: as close to Hugging Face's eager forward as rounding
allows, and bit for bit independent of neighbours, chunks and the prefill-decode split.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    VOCAB,
    TinyRunner,
    make_batch,
    tiny_config,
    tiny_model,
    tokens,
)

from detinfer import ops
from detinfer.backends import portable
from detinfer.errors import UnsupportedModelError
from detinfer.models.audit import audit_model
from detinfer.models.context import ForwardContext, forward_context

LENGTHS = (9, 7, 12)
PROMPTS = [tokens(n, seed) for seed, n in enumerate(LENGTHS)]
NEXT = [5, 6, 7]
PAGES = [[3], [9], [2]]


@dataclass(frozen=True)
class Case:
    """An architecture's runner, and Hugging Face's own logits of each prompt + next token.

    The budget is four times what half an ulp of noise on the embedding does to Hugging Face's
    logits: more than rounding in another order can, less than any wrong formula does.
    """

    runner: TinyRunner
    expected: list[npt.NDArray[np.float32]]
    budget: float


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def case(request: pytest.FixtureRequest) -> Case:
    model = tiny_model(tiny_config(request.param))
    expected = all_eager_logits(model)
    noisy = copy.deepcopy(model)
    with torch.no_grad():
        weight = noisy.get_input_embeddings().weight
        weight.mul_(1 + 2**-24 * torch.randn(weight.shape, generator=torch.manual_seed(2)))
    budget = 4 * max_difference(all_eager_logits(noisy), expected)
    assert budget < 1e-4 * max(np.abs(logits).max() for logits in expected)
    return Case(TinyRunner(model), expected, budget)


def all_eager_logits(model: Any) -> list[npt.NDArray[np.float32]]:
    return [eager_logits(model, [*p, n]) for p, n in zip(PROMPTS, NEXT, strict=True)]


def max_difference(a: list[npt.NDArray[np.float32]], b: list[npt.NDArray[np.float32]]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def eager_logits(model: Any, ids: list[int]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def bits(a: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    return a.view(np.int32)


def flat(runner: TinyRunner, deterministic: bool = True) -> list[npt.NDArray[np.float32]]:
    """Three sequences in one step, then one token of each in another. Logits of all rows."""
    prompts = [(p, 0, pages) for p, pages in zip(PROMPTS, PAGES, strict=True)]
    step = [([n], len(p), pages) for p, n, pages in zip(PROMPTS, NEXT, PAGES, strict=True)]
    prefill = runner.logits(make_batch(prompts, deterministic))
    decode = runner.logits(make_batch(step, deterministic))
    split = np.split(prefill, np.cumsum(LENGTHS)[:-1])
    return [np.concatenate([p, d[None]]) for p, d in zip(split, decode, strict=True)]


def test_flattened_sequences_and_decode_match_eager(case: Case) -> None:
    assert max_difference(flat(case.runner), case.expected) <= case.budget


def test_bits_do_not_depend_on_neighbours_chunks_or_decode(case: Case) -> None:
    together = flat(case.runner)
    rows = zip(PROMPTS, NEXT, PAGES, together, (1, 3, 4), strict=True)
    for prompt, following, pages, reference, chunk in rows:
        ids = [*prompt, following]
        alone = case.runner.logits(make_batch([(ids, 0, pages)]))
        np.testing.assert_array_equal(bits(alone), bits(reference))
        chunks = []
        for i in range(0, len(ids), chunk):
            part = ids[i : i + chunk]
            batch = make_batch([(part, i, pages), (PROMPTS[0][: i + 1], 0, [11])])
            chunks.append(case.runner.logits(batch)[: len(part)])
        np.testing.assert_array_equal(bits(np.concatenate(chunks)), bits(reference))


def test_audit_accepts(case: Case) -> None:
    audit_model(case.runner.model, VOCAB, case.runner)


def test_fast_mode_is_close_and_has_other_bits(case: Case) -> None:
    fast = flat(case.runner, deterministic=False)
    assert max_difference(fast, case.expected) <= case.budget
    pairs = zip(fast, flat(case.runner), strict=True)
    assert any((bits(a) != bits(b)).any() for a, b in pairs)


def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op of the contract raises from here on."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a kernel of the contract in a fast step")

    for name in set(ops.__all__) - {"use", "device"}:
        if inspect.isfunction(getattr(ops, name)):
            monkeypatch.setattr(ops, name, refuse)


def test_no_leaf_of_a_fast_step_reaches_a_kernel(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_kernels(monkeypatch)
    swapped = [m for m in case.runner.model.modules() if hasattr(type(m), "swapped_from")]
    assert len(swapped) > 10
    flat(case.runner, deterministic=False)


def test_each_kind_of_leaf_reaches_one_in_a_deterministic_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: what stands in for the kernels is what leaves call."""
    llama = TinyRunner(tiny_model(tiny_config("llama"))).model.model.layers[0]
    no_kernels(monkeypatch)
    x = torch.ones(1, 3, 72)
    for leaf in (llama.input_layernorm, llama.mlp.act_fn, llama.mlp.up_proj):
        with (
            torch.inference_mode(),
            forward_context(ForwardContext(None, None)),
            pytest.raises(AssertionError, match="a kernel of the contract"),
        ):
            leaf(x)


def test_a_sum_split_by_the_row_count_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the comparison above sees it when a row's bits follow the batch."""
    linear = portable.linear

    def split_in_large_batches(x: Any, weight: Any, bias: Any, out_dtype: Any) -> Any:
        if x[..., 0].numel() <= max(LENGTHS):
            return linear(x, weight, bias, out_dtype)
        half = x.shape[-1] // 2
        low, high = x.clone(), x.clone()
        low[..., half:], high[..., :half] = 0, 0
        return linear(low, weight, None, out_dtype) + linear(high, weight, bias, out_dtype)

    monkeypatch.setattr(portable, "linear", split_in_large_batches)
    runner = TinyRunner(tiny_model(tiny_config("llama")))
    together = flat(runner)
    for ids, pages, reference in zip(PROMPTS, PAGES, together, strict=True):
        alone = runner.logits(make_batch([(ids, 0, pages)]))
        assert (bits(alone) != bits(reference[:-1])).any()


def test_linear_attention_is_refused() -> None:
    config = tiny_config(
        "qwen3_next",
        num_experts_per_tok=2,
        num_experts=4,
        moe_intermediate_size=36,
        head_dim=12,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    )
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        TinyRunner(tiny_model(config))


def test_layers_that_share_keys_and_values_are_refused() -> None:
    config = tiny_config(
        "gemma4_text",
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
    )
    with pytest.raises(UnsupportedModelError, match="layers share keys and values"):
        TinyRunner(tiny_model(config))
