"""Of every architecture, the final hidden states are what its output layer reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, TinyRunner, make_batch, tiny_config, tiny_model, tokens

from detinfer.testing import assert_same_bits

STEP = [(tokens(19, 0), 0, [3]), (tokens(7, 1), 0, [9])]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_final_states_are_what_the_head_reads(architecture: str) -> None:
    runner = TinyRunner(tiny_model(tiny_config(architecture)))
    head = runner.model.get_output_embeddings()
    width = head.in_features  # what the engine is told, before a model is patched and after
    read: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, given: read.append(given[0][0].clone()))
    batch = make_batch(STEP)
    runner.forward(batch)
    hook.remove()
    none = np.empty(0, np.int32)
    runner.forward(replace(batch, logit_rows=none, hidden_rows=batch.logit_rows))
    assert runner.hidden.shape == (26, width)
    assert_same_bits(runner.hidden, read[0])


def test_another_layers_states_are_told_apart() -> None:
    """The control: states before the last norm."""
    runner: Any = TinyRunner(tiny_model(tiny_config("llama")))
    batch = make_batch(STEP)
    none = np.empty(0, np.int32)
    before: list[torch.Tensor] = []
    hook = runner.model.model.norm.register_forward_pre_hook(
        lambda _, given: before.append(given[0][0].clone())
    )
    runner.forward(replace(batch, logit_rows=none, hidden_rows=batch.logit_rows))
    hook.remove()
    assert not torch.equal(runner.hidden, before[0])
