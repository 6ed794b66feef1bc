"""Architectures on the Triton kernels: both plans agree, padding and chunks change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from native_models import SMALL, native_runner
from tiny_models import TinyRunner, make_batch, tiny_config, tiny_model, tokens

from detinfer import ops
from detinfer.backends.native_batch import NativeBatch, StepLayout, fill, work_lists
from detinfer.batch import Batch
from detinfer.config import EngineConfig
from detinfer.errors import ConfigError, UnsupportedModelError
from detinfer.kernels.triton import launch
from detinfer.kernels.triton.attention_work import Layout
from detinfer.runner.native import NativeRunner
from detinfer.testing import assert_same_bits

FUSED = ("llama", "qwen3", "gemma2", "olmo2", "phi3", "granite")
MODULES = ("mixtral", "gpt_oss", "deepseek_v3", "gpt_neox")
QUICK = ("gemma2", "mixtral")  # a window, both softcaps and four norms a layer; experts
ARCHITECTURES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FUSED + MODULES
]

STEPS = (
    [(tokens(19, 0), 0, [2]), (tokens(3, 1), 0, [5])],
    [([4], 19, [2]), ([6], 3, [5])],
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_is_near_the_portable_profile(architecture: str) -> None:
    runner = native_runner(architecture, torch.float32)
    portable = TinyRunner(tiny_model(tiny_config(architecture)))
    for step in STEPS:
        got, expected = (r.forward(make_batch(step)).clone() for r in (runner, portable))
        # Two layers of sums in other orders: some hundred roundings of 2^-24 on the way.
        assert (got - expected).abs().max() < 300 * 2.0**-24 * expected.abs().max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_sequence_by_itself_through_the_models_own_modules_has_the_same_bits(
    architecture: str,
) -> None:
    runner = native_runner(architecture)
    assert runner.plan == ("fused" if architecture in FUSED else "modules")
    own = native_runner(architecture, plan="modules") if runner.plan == "fused" else runner
    for step in STEPS:
        got = runner.forward(make_batch(step)).clone()
        start = 0
        for row in step:
            stop = start + len(row[0])
            assert_same_bits(own.forward(make_batch([row])), got[start:stop], architecture)
            start = stop


@pytest.mark.parametrize("architecture", QUICK)
def test_hidden_states_have_the_same_bits_beside_others_and_leave_the_logits_theirs(
    architecture: str,
) -> None:
    runner = native_runner(architecture)
    whole = make_batch(STEPS[0])
    logits = runner.forward(whole).clone()
    rows, count = whole.logit_rows, len(STEPS[0][0][0])
    assert_same_bits(
        runner.forward(replace(whole, logit_rows=rows[count:], hidden_rows=rows[:count])),
        logits[count:],
    )
    states = runner.hidden.clone()
    alone = make_batch(STEPS[0][:1])
    runner.forward(replace(alone, logit_rows=rows[:0], hidden_rows=rows[:count]))
    assert_same_bits(runner.hidden, states)
    head = runner.model.get_output_embeddings()
    width = (count, runner.hidden_size)
    assert states.shape == width == (count, head.in_features)


def replay(runner: NativeRunner, batch: Batch) -> torch.Tensor:
    """What a CUDA graph replays: capacity for eight rows of any length."""
    assert runner._fused is not None
    layout = StepLayout(
        tokens=8,
        sequences=8,
        pages=4,
        rows=8,
        work=tuple(
            Layout.for_load(tiling, shape.group, shape.window, 8, 1, 256)
            for shape, tiling in zip(runner._shapes, runner._tilings, strict=True)
        ),
    )
    buffer = np.full(layout.offsets[-1], 77, np.int32)  # what an earlier batch left
    work = work_lists(batch, runner._shapes, runner._tilings)
    fill(buffer, layout, batch, work)
    with ops.use(runner.profile), torch.inference_mode():
        on_device = NativeBatch(torch.from_numpy(buffer), layout, runner._shapes)
        return runner._fused.forward(on_device)[: len(batch.logit_rows)]


@pytest.mark.parametrize("middle", [[6], [6, 9, 4, 6]], ids=["tokens", "a-draft"])
def test_a_padded_step_of_fixed_addresses_gives_the_same_bits(middle: list[int]) -> None:
    """Three sequences, one of which may have a draft that crosses into its second page."""
    runner = native_runner("llama", config=SMALL)
    for position, pages in ((0, [2]), (62, [3]), (5, [6])):
        ids = tokens(position, position)
        if ids:
            runner.forward(make_batch([(ids, 0, pages)]))
    batch = make_batch([([5], 0, [2]), (middle, 62, [3, 4]), ([7], 5, [6])])
    expected = runner.forward(batch).clone()
    # Pages that no row of this step owns must stay as they are, the others come to be so again.
    before = [pages.clone() for pages in runner.cache.keys]
    for pages in (*runner.cache.keys, *runner.cache.values):
        pages[4] = float("nan")
    assert_same_bits(replay(runner, batch.one_token_each()), expected)
    for pages, old in zip(runner.cache.keys, before, strict=True):
        assert_same_bits(pages, old)


def test_a_draft_whose_rows_cannot_see_each_other_fails_the_same_comparison() -> None:
    """The negative control: rows over copies of their pages, as other requests would have them."""
    runner = native_runner("llama", config=SMALL)
    runner.forward(make_batch([(tokens(20, 1), 0, [3])]))
    for pages in (*runner.cache.keys, *runner.cache.values):
        pages[4] = pages[3]
    batch = make_batch([([6, 9], 20, [3])])
    expected = runner.forward(batch).clone()
    apart = batch.one_token_each()
    apart.block_tables[1] = 4
    got = replay(runner, apart)
    assert_same_bits(got[0], expected[0])
    assert not torch.equal(got[1], expected[1])


def test_a_wrong_rounding_is_told_by_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the comparison of plans at load."""
    from detinfer.runner.native_fused import NativeStep

    real = NativeStep._norm

    def shifted(self, weight, x, added=None):  # adds the residual after the norm
        return real(self, weight, x) if added is None else real(self, weight, x) + added

    monkeypatch.setattr(NativeStep, "_norm", shifted)
    assert native_runner("llama", config=SMALL).plan == "modules"
    with pytest.raises(UnsupportedModelError, match="plan fused: LlamaForCausalLM: its bits"):
        native_runner("llama", config=SMALL, plan="fused")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "cuda", "numerics": "portable"}, "numerics: got 'portable' with device 'cuda'"),
        ({"device": "tpu"}, "device: got 'tpu', expected one of auto, cpu, cuda"),
        ({"numerics": "exact"}, "numerics: got 'exact', expected one of auto, portable, native"),
    ],
)
def test_settings_without_kernels_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        NativeRunner(EngineConfig(**settings).resolve())


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(ConfigError, match="numerics: got 'native' with device 'cpu'"):
        NativeRunner(EngineConfig(numerics="native").resolve())
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="PyTorch sees no GPU"):
            NativeRunner(EngineConfig(device="cuda").resolve())
