"""Sharing out a region's items among threads that wait for work, never for one another.

A step is one parallel call in which every thread runs the same program. In each region of it
threads take items from a shared counter; a region is over when all its items are done, whoever did
them. A thread that the system has set aside holds up nothing but the item in its hands, and when it
comes back it finds finished regions and catches up. OpenMP's regions, in contrast, end only when
every thread has come: on busy cores that costs a scheduler slice each.

Half of the threads take items from the front and half from the back. So over a step's regions
rows and panels stay with the half of the cores that has them in its caches, which lie far apart on
some machines; and still nobody waits for items that another could do.

Which thread does an item cannot change a bit; items of one region never touch each other's results.
A *region* is the address of its counters, plus BACK for a thread that takes from the back.
"""

from __future__ import annotations

import platform

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from detinfer.kernels.cpu.jit import kernel
from detinfer.kernels.cpu.vector import ADDRESS, I32, I64, const64, row_intrinsic

LINE = 64  # bytes of a cache line: the two counters of a region stay apart
REGION = 2 * LINE  # bytes of a region: items taken, items done
BACK = 1
SPINS = 2000  # reads before a waiting thread offers its core to others
_HAS_PAUSE = platform.machine().lower() in ("x86_64", "amd64")


@kernel
def regions(count):
    """Counters of ``count`` regions, all at zero.

    Take their address inside the parallel loop: an array whose last use lies before it is freed.
    """
    return np.zeros(count * REGION // 8, np.int64)


def _counter(b, region, offset):
    start = b.and_(region, const64(~BACK))
    return b.inttoptr(b.add(start, const64(offset)), I64.as_pointer())


def _take(b, region, count):
    # One counter of two halves: how many were taken from the front, and from the back.
    back = b.trunc(region, ir.IntType(1))
    one = b.select(back, const64(1 << 32), const64(1))
    taken = b.atomic_rmw("add", _counter(b, region, 0), one, "acq_rel")
    front, rear = b.and_(taken, const64(0xFFFFFFFF)), b.lshr(taken, const64(32))
    item = b.select(back, b.sub(b.sub(count, const64(1)), rear), front)
    return b.select(b.icmp_signed("<", b.add(front, rear), count), item, count)


def _done(b, region):
    b.atomic_rmw("add", _counter(b, region, LINE), const64(1), "acq_rel")


def _done_count(b, region):
    return b.load_atomic(_counter(b, region, LINE), "acquire", 8)


def _pause(b):
    if _HAS_PAUSE:
        kind = ir.FunctionType(ir.VoidType(), [])
        b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.sse2.pause"), [])


def _yield_core(b):
    kind = ir.FunctionType(I32, [])
    b.call(cgutils.get_or_insert_function(b.module, kind, "sched_yield"), [])


# take(region, count): an item that nobody has taken; ``count`` where none of so many is left.
take = row_intrinsic(types.int64, [ADDRESS, ADDRESS], _take)
_mark_done = row_intrinsic(types.void, [ADDRESS], _done)
_items_done = row_intrinsic(types.int64, [ADDRESS], _done_count)
_relax = row_intrinsic(types.void, [], _pause)
_offer_core = row_intrinsic(types.void, [], _yield_core)


@kernel
def end_of(thread, threads):
    """Which end a thread of a team takes its items from, to be added to its regions."""
    return BACK if 2 * thread >= threads else 0


@kernel
def step_of(region):
    """Return how far the item that a thread takes next is from the one in its hands: 1 or -1."""
    return 1 - 2 * (region & BACK)


@kernel
def done_take(region, count):
    """Hand in an item and take the next."""
    _mark_done(region)
    return take(region, count)


@kernel
def wait(region, count):
    """Return once all ``count`` items of a region are done."""
    spins = 0
    while _items_done(region) < count:
        spins += 1
        if spins < SPINS:
            _relax()
        else:
            _offer_core()
