"""What this machine can do at most: bytes read, and multiply-adds, a second, by all its cores.

Multiply-adds are those of a tile that stays in registers and the first cache, by the instructions
that the kernels use: what is left of a linear layer when nothing else is to be done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils

from detinfer.kernels.cpu.jit import numba
from detinfer.kernels.cpu.packed.dot import COLUMNS, dot_product
from detinfer.kernels.cpu.vector import ADDRESS, I32, Emit, const64, row_intrinsic
from detinfer.machine import usable_cores

ROWS = 6
VECTORS = 4 if COLUMNS == 16 else 2  # accumulators for every register but a few
STEPS = 8  # operands of a turn of the loop
TURN = ROWS * VECTORS * COLUMNS * STEPS  # its multiply-adds of binary32; of int8, four times that
TURN_READ = 4 * ROWS * VECTORS * COLUMNS  # bytes
READ = TURN_READ << 17  # by each thread: far more than caches hold
TURNS = 1 << 17
ORDINARY = 0x3F00003F  # a word of small bytes; as a number, half


class Limits(NamedTuple):
    """Bytes read, int8 and binary32 multiply-adds, each a second."""

    bandwidth: float
    int8: float
    float32: float


def _sums(b, kind, turns, out, body) -> None:
    """Emit ``sums = body(sums, turn)`` over and over; what comes of it is written down."""
    zero = ir.Constant(kind, [0] * COLUMNS)
    cells = [cgutils.alloca_once_value(b, zero) for _ in range(ROWS * VECTORS)]
    with cgutils.for_range(b, turns) as loop:
        sums = body([b.load(cell) for cell in cells], loop.index)
        for cell, value in zip(cells, sums, strict=True):
            b.store(value, cell)
    for i, cell in enumerate(cells):
        Emit(b, COLUMNS).store(b.load(cell), out, const64(i * COLUMNS))


def _vector(b, operands, at):
    e = Emit(b, COLUMNS)
    return b.load(e.pointer(operands, b.mul(at, const64(COLUMNS)), kind=e.i32), align=4)


def _word(b, operands, at: int):
    address = b.add(operands, const64(4 * at))
    return Emit(b, COLUMNS).splat(b.load(b.inttoptr(address, I32.as_pointer())))


def _multiply_adds(b, turns, operands, out, kind, one) -> None:
    """Emit tiles of ``total = one(u, q, total)``, of ROWS words by VECTORS vectors."""

    def body(sums, _):
        for step in range(STEPS):
            u = [_vector(b, operands, const64(step * VECTORS + v)) for v in range(VECTORS)]
            q = [_word(b, operands, step * ROWS + r) for r in range(ROWS)]
            sums = [one(u[i % VECTORS], q[i // VECTORS], sums[i]) for i in range(len(sums))]
        return sums

    _sums(b, kind, turns, out, body)


def _int8(b, turns, operands, out) -> None:
    dot = dot_product(b, 4)

    def one(u, q, total):
        return dot.finish(dot.add(dot.start(total), u, q))

    _multiply_adds(b, turns, operands, out, Emit(b, COLUMNS).i32, one)


def _float32(b, turns, operands, out) -> None:
    e = Emit(b, COLUMNS)

    def one(w, x, total):
        return e.fma(e.as_float(x), e.as_float(w), total)

    _multiply_adds(b, turns, operands, out, e.f32, one)


def _read(b, turns, operands, out) -> None:
    def body(sums, turn):
        first = b.mul(turn, const64(len(sums)))
        return [
            b.add(total, _vector(b, operands, b.add(first, const64(i))))
            for i, total in enumerate(sums)
        ]

    _sums(b, Emit(b, COLUMNS).i32, turns, out, body)


def _parallel(emit) -> Callable[[int, np.ndarray, np.ndarray], None]:
    """Compile ``emit``; each thread runs it over a row of its own."""

    def body(b, turns, operands, out):
        emit(b, turns, operands, out)
        return const64(0)

    one = row_intrinsic(types.int64, [ADDRESS] * 3, body)

    @njit(parallel=True, nogil=True)
    def run(turns, operands, out):
        for thread in prange(operands.shape[0]):
            one(turns, operands[thread].ctypes.data, out[thread].ctypes.data)

    return run


def _best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call: nothing is faster than the machine, much is slower."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(threads: int | None = None, repeats: int = 7) -> Limits:
    """Measure for so many threads, all usable cores if None; takes a few seconds."""
    threads = threads or usable_cores()
    numba.set_num_threads(threads)

    def rate(emit, words: int, turns: int, each: int) -> float:
        """``each`` of a turn by each thread, a second."""
        run, out = _parallel(emit), np.empty((threads, ROWS * VECTORS * COLUMNS), np.int32)
        operands = np.full((threads, words), ORDINARY, np.int32)
        return each * turns * threads / _best(lambda: run(turns, operands, out), repeats)

    return Limits(
        bandwidth=rate(_read, READ // 4, READ // TURN_READ, TURN_READ),
        int8=rate(_int8, 4096, TURNS, 4 * TURN),
        float32=rate(_float32, 4096, TURNS, TURN),
    )


if __name__ == "__main__":
    for name, value in measure()._asdict().items():
        print(f"{name}: {value / 1e9:.4g} billion/s")
