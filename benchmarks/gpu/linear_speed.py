"""``linear`` against cuBLAS, and the launch table's choice against its alternatives."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Result, section
from benchmarks.gpu.device import Timer, copies_beyond_cache, normal
from detinfer.kernels.triton.launch import architecture
from detinfer.kernels.triton.matmul import LinearConfig, Weight, linear, select

SMALL_M, LARGE_M = 64, 1024  # the bars are set for M up to the one and from the other
HEAD_ROWS = 256  # a head multiplies sampled rows only
_ONE_WAVE = 8192  # columns up to which the table has tiles of 32


def _swapped(n: int, m: int, k: int, stages: int) -> LinearConfig:
    return LinearConfig(m, n, k, 4, stages, swap=True, tma=True)


def _normal(m: int, n: int, k: int, warps: int, stages: int) -> LinearConfig:
    return LinearConfig(m, n, k, warps, stages, tma=True)


def candidates(arch: int, n: int, m: int) -> tuple[LinearConfig, ...]:
    """Return what is timed beside the table's choice: other stages, and other tiles."""
    if arch != 90:
        return ()
    if m <= 16:
        narrow = (_normal(16, 32, 128, 4, 8), _swapped(64, 16, 128, 5))
        wide = (_swapped(64, 16, 128, 3), _swapped(128, 16, 128, 3), _swapped(64, 16, 128, 4))
        return narrow if n <= _ONE_WAVE else wide
    if m <= 32:
        narrow = (_normal(32, 32, 128, 4, 6), _swapped(64, 32, 128, 4))
        return narrow if n <= _ONE_WAVE else (_swapped(64, 32, 128, 3), _swapped(64, 32, 128, 4))
    if m <= 64:
        return (_swapped(64, 64, 64, 6), _swapped(128, 64, 64, 6), _swapped(64, 64, 128, 4))
    if m <= 128:
        return (_swapped(64, 128, 64, 4), _swapped(128, 128, 64, 4), _normal(128, 128, 64, 8, 4))
    square, oblong = _normal(128, 128, 64, 8, 4), _normal(128, 256, 64, 8, 3)
    every = (square, *(dataclasses.replace(one, persistent=True) for one in (square, oblong)))
    return (*every, oblong) if m > 256 else (_swapped(64, 128, 64, 4), *every)


@section("perf.linear", seconds=110)
def linear_speed(bench: Bench) -> Result:
    """Every weight at every row count, beside cuBLAS; time left, other configurations too."""
    timer = Timer(bench.device)
    shapes: dict[tuple[int, int], str] = {}
    for model in bench.sizes.speed:
        for layer, shape in model.linears().items():
            shapes.setdefault(shape, f"{model.name} {layer}")
    points = [_Point(bench, timer, name, n, k) for (n, k), name in shapes.items()]
    rows, unmeasured = [], []
    swept: list[tuple[_Point, dict[str, Any]]] = []
    for point in points:
        for m in bench.sizes.rows:
            if point.name.endswith("head") and m > HEAD_ROWS:
                continue
            if bench.left() < 4:
                unmeasured.append(f"{point.name} M={m}")
                continue
            row = point.against_cublas(m)
            rows.append(row)
            if m in bench.sizes.swept:
                swept.append((point, row))
        point.forget()
    unswept = _sweep(bench, swept)
    return {
        "rows": rows,
        "small_m_ratio": _geometric_mean(rows, lambda m: m <= SMALL_M),
        "large_m_ratio": _geometric_mean(rows, lambda m: m >= LARGE_M),
        "small_m_ratio_best_candidates": _geometric_mean(rows, lambda m: m <= SMALL_M, best=True),
        "large_m_ratio_best_candidates": _geometric_mean(rows, lambda m: m >= LARGE_M, best=True),
        "unmeasured": unmeasured,
        "unswept": unswept,
    }


def _sweep(bench: Bench, swept: list[tuple[_Point, dict[str, Any]]]) -> list[str]:
    """Add ``candidates`` to each row, weight after weight, while there is time."""
    unswept = []
    current: _Point | None = None
    for point, row in swept:
        if bench.left() < 3:
            unswept.append(f"{point.name} M={row['m']}")
            continue
        if current is not None and point is not current:
            current.forget()
        current = point
        row["candidates"] = point.alternatives(row["m"])
    if current is not None:
        current.forget()
    return unswept


class _Point:
    """One weight, in enough copies that each has left the L2 when its turn comes again."""

    def __init__(self, bench: Bench, timer: Timer, name: str, n: int, k: int) -> None:
        self.name, self.n, self.k = name, n, k
        self._bench, self._timer = bench, timer
        self._weights: list[Weight] = []

    def forget(self) -> None:
        """Free the weights."""
        self._weights = []

    def against_cublas(self, m: int) -> dict[str, Any]:
        """Seconds of the table's choice and of cuBLAS, interleaved."""
        x, y = self._operands(m)
        config = select(architecture(self._bench.device), x.dtype, self.n, self.k, m)
        ours = self._ours(x, y, None)
        theirs: list[Callable[[], Any]] = [
            partial(torch.mm, x, weight.tensor.T, out=y) for weight in self._weights
        ]
        seconds = self._timer.medians({"ours": ours, "cublas": theirs}, self._bench.sizes.repeats)
        y.fill_(float("nan"))
        ours[0]()
        if not bool(y.isfinite().all()):
            raise RuntimeError(f"{self.name} M={m}: not every element was written")
        moved = (self.n * self.k + m * (self.n + self.k)) * 2
        time, copy = seconds["ours"], self._bench.ceiling("copy_gb_s")
        rate = 2 * m * self.n * self.k * 1e-12 / time
        matmul = self._bench.ceiling("matmul_tflop_s")
        return {
            "weight": self.name,
            "n": self.n,
            "k": self.k,
            "m": m,
            "config": _text(config),
            "us": time * 1e6,
            "cublas_us": seconds["cublas"] * 1e6,
            "ratio": seconds["cublas"] / time,
            "gb_s": moved * 1e-9 / time,
            "of_copy": copy and moved * 1e-9 / time / copy,
            "tflop_s": rate,
            "of_matmul": matmul and rate / matmul,
        }

    def alternatives(self, m: int) -> list[dict[str, Any]]:
        """Seconds of other configurations; one that does not launch says why."""
        x, y = self._operands(m)
        arch = architecture(self._bench.device)
        calls: dict[str, list[Callable[[], Any]]] = {}
        found: list[dict[str, Any]] = []
        for config in candidates(arch, self.n, m):
            try:
                calls[_text(config)] = self._ours(x, y, config)
                calls[_text(config)][0]()
            except Exception as error:
                calls.pop(_text(config), None)
                found.append({"config": _text(config), "error": str(error)[:200]})
        for name, seconds in self._timer.medians(calls, self._bench.sizes.repeats).items():
            found.append({"config": name, "us": seconds * 1e6})
        return found

    def _ours(self, x: Tensor, y: Tensor, config: LinearConfig | None) -> list[Callable[[], Any]]:
        return [partial(linear, x, weight, out=y, config=config) for weight in self._weights]

    def _operands(self, m: int) -> tuple[Tensor, Tensor]:
        count = copies_beyond_cache(self.n * self.k * 2) if m < LARGE_M else 1
        count = min(count, 2) if self._bench.smoke else count
        while len(self._weights) < count:
            w = normal(self._bench, self.n, self.k, seed=len(self._weights))
            self._weights.append(Weight(w))
        del self._weights[count:]
        x = normal(self._bench, m, self.k, seed=99)
        return x, x.new_empty(m, self.n)


def _text(config: LinearConfig) -> str:
    flags = [name for name in ("swap", "tma", "persistent") if getattr(config, name)]
    tile = f"{config.block_m}x{config.block_n}x{config.block_k}"
    return " ".join([tile, f"w{config.warps}", f"s{config.stages}", *flags])


def _geometric_mean(
    rows: list[dict[str, Any]], wanted: Callable[[int], bool], best: bool = False
) -> float | None:
    """Of cuBLAS's time over ours; with ``best``, over the quickest configuration timed."""
    ratios = []
    for row in rows:
        if wanted(row["m"]):
            timed = [one["us"] for one in row.get("candidates", ()) if "us" in one]
            ours = min([row["us"], *timed]) if best else row["us"]
            ratios.append(row["cublas_us"] / ours)
    return statistics.geometric_mean(ratios) if ratios else None
