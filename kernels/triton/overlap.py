"""A kernel's start overlapped with the end of the one before it: programmatic dependent launch.

A decode step is hundreds of short kernels, so the gap between two of them is a good part of it.
From Hopper on a kernel may be resident before its turn, if it waits itself for what it reads.

Linear layers only let the next kernel start. Started early themselves, their programs would crowd
the multiprocessors that are done first: on an H200 that made a step an eighth slower, where all the
other kernels' early starts made it a twentieth faster.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def let_next_start(OVERLAP: tl.constexpr):
    """Let the next kernel start as soon as all programs of this one have."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def take_turn(OVERLAP: tl.constexpr):
    """Let the next kernel start, then wait until the one before has ended and can be read.

    A kernel that starts early begins with this, also where it finds nothing to do: one that ended
    at once would let the next one overtake its predecessor. The compile audit looks for it in the
    machine code.
    """
    let_next_start(OVERLAP)
    if OVERLAP:
        gdc_wait()
