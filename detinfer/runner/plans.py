"""The modules plan of a step, and how a fused one is held against it before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detinfer.batch import Batch
from detinfer.models.context import ForwardContext, forward_context


def run_modules(
    model: Any, batch: Batch, context: ForwardContext, device: Any = None
) -> tuple[Tensor, Tensor | None]:
    """Run the model's own modules.

    Returns:
        Logits of the batch's logit rows [L, V], and the final hidden states of its hidden rows
        [H, D], None if there are none; float32.
    """
    ids, positions, rows = (
        torch.from_numpy(a).to(device).long()
        for a in (batch.input_ids, batch.positions, batch.logit_rows)
    )

    def run() -> Tensor:
        logits: Tensor = model(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=rows,
        ).logits[0]
        return logits.float().contiguous()

    with torch.inference_mode(), forward_context(context):
        if not batch.hidden_rows.size:
            return run(), None
        with _final_states(model) as found:
            logits = run()
        wanted = torch.from_numpy(batch.hidden_rows).to(device).long()
        return logits, found[-1][wanted].float()


@contextmanager
def _final_states(model: Any) -> Iterator[list[Tensor]]:
    """Give the list of what the model's decoder hands to its head: after the last norm. [T, D]."""
    found: list[Tensor] = []

    def keep(module: Any, given: Any, output: Any) -> None:
        found.append(output.last_hidden_state[0])

    hook = model.get_decoder().register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def plans_agree(
    modules: Callable[[Batch], Tensor], fused: Callable[[Batch], Tensor], vocab: int
) -> bool:
    """Tell whether both give the same bits of logits: on a prompt, a chunk of it, one token.

    Args:
        modules: logits of a batch by the model's own modules, on page 1 of the pool.
        fused: the same by the plan in question.
        vocab: ids there are.
    """
    ids = (np.arange(25, dtype=np.int32) * 7919 + 1) % vocab
    for start, stop in ((0, 20), (20, 24), (24, 25)):
        batch = Batch(
            input_ids=ids[start:stop],
            positions=np.arange(start, stop, dtype=np.int32),
            query_start=np.array([0, stop - start], np.int32),
            block_tables=np.ones((1, 1), np.int32),
            logit_rows=np.arange(stop - start, dtype=np.int32),
        )
        expected, got = modules(batch), fused(batch)
        if not torch.equal(got.view(torch.int32), expected.view(torch.int32)):
            return False
    return True
