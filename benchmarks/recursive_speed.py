"""Puzzles a second of a recursive model: by kernels and batch, and by when its puzzles halt."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import interleaved, median, stopwatch
from detinfer.recursive import shipped
from detinfer.recursive.model import I8, RecursiveModel
from detinfer.recursive.network import Network
from detinfer.recursive.params import SolveParams
from detinfer.recursive.solver import Solver
from detinfer.recursive.tasks import TASKS, Puzzles
from detinfer.recursive.training.trainer import network
from detinfer.recursive.weights import load_weights

BATCHES = (1, 8, 64)
TIMED = 4  # steps of a round: each takes as long as any other
ADAPTIVE = 128  # puzzles of a round through the engine


def ours(model: RecursiveModel, boards: I8) -> float:
    """Return the seconds of some steps by the model's own kernels."""
    y, z = (state.copy() for state in model.start(len(boards)))
    with stopwatch() as seconds:
        for _ in range(TIMED):
            model.step(boards, y, z)
    return seconds()


def plain_network(source: str) -> Network:
    """Read the same weights for PyTorch's kernels."""
    path = Path(source) if source.endswith(".safetensors") else shipped.path(source)
    config, weights = load_weights(path)
    return network(config, weights, TASKS[config.task])


@torch.inference_mode()
def plain(net: Network, boards: I8) -> float:
    """Return the seconds of as many steps of a loop as one writes it in PyTorch."""
    ids = torch.from_numpy(boards).long()
    with stopwatch() as seconds:
        x, (y, z) = net.embed(ids), net.start(len(boards))
        for _ in range(TIMED):
            for _ in range(net.config.cycles):
                y, z = net.recursion(x, y, z)
            logits, _ = net.heads(y)
            logits.argmax(-1)
    return seconds()


def speed(
    model: RecursiveModel, torch_network: Network, boards: I8, steps: int, repeats: int
) -> list[dict[str, Any]]:
    """Tell puzzles a second of both, for each batch, when each puzzle takes ``steps`` steps."""
    torch.set_num_threads(model.threads)
    measures: dict[str, Callable[[], float]] = {}
    for batch in BATCHES:
        measures[f"ours {batch}"] = partial(ours, model, boards[:batch])
        measures[f"plain {batch}"] = partial(plain, torch_network, boards[:batch])
    seconds = interleaved(measures, repeats)
    rows = []
    for batch in BATCHES:
        own, theirs = (median(seconds[f"{name} {batch}"]) for name in ("ours", "plain"))
        rows.append(
            {
                "model": model.name,
                "batch": batch,
                "deterministic": batch * TIMED / own / steps,
                "pytorch": batch * TIMED / theirs / steps,
                "ratio": theirs / own,
            }
        )
    return rows


def adaptive(
    solver: Solver, model: RecursiveModel, puzzles: Puzzles, steps: int, repeats: int
) -> dict[str, Any]:
    """Tell the engine's puzzles a second, and shares solved, halting early and not."""
    render = model.task.render
    boards = [render(board) for board in puzzles.boards[:ADAPTIVE]]
    answers = [render(answer) for answer in puzzles.answers[:ADAPTIVE]]
    exact: dict[str, float] = {}

    def measure(halt: Any) -> float:
        with stopwatch() as seconds:
            solutions = solver.solve(boards, SolveParams(max_steps=steps, halt=halt))
        right = [one.grid == answer for one, answer in zip(solutions, answers, strict=True)]
        exact[halt] = math.fsum(right) / len(right)
        return seconds()

    rounds = interleaved(
        {"fixed": partial(measure, "fixed"), "verified": partial(measure, "verified")}, repeats
    )
    fixed, early = median(rounds["fixed"]), median(rounds["verified"])
    return {
        "model": model.name,
        "fixed": len(boards) / fixed,
        "verified": len(boards) / early,
        "ratio": fixed / early,
        "fixed_exact": exact["fixed"],
        "verified_exact": exact["verified"],
    }
