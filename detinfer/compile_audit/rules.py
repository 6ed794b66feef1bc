"""What machine code must show, a function a rule.

Each rule gets a case and its compiled code and yields what is wrong, in one line. Why each is
there: docs/arithmetic.md for those that guard the bits, the rest guard what launch tables intend.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from detinfer.compile_audit.cases import Case
from detinfer.compile_audit.compiling import Compiled, starts_early
from detinfer.compile_audit.machine_code import (
    Chain,
    Instruction,
    chains,
    descriptor_offsets,
    instructions,
    is_mma,
    joined,
)
from detinfer.kernels.triton.launch import OVERLAP_FROM, SHARED_LIMIT

Rule = Callable[[Case, Compiled], Iterator[str]]

LDS_LIMIT = 65536  # bytes of shared memory a workgroup may have on gfx942

# Approximate instructions by op: 2^x is one in attention, by contract.
APPROXIMATE = {"attention": ("ex2.approx.ftz.f32",)}

_FAMILY = {"wgmma.mma_async": "wgmma", "mma.sync": "mma.sync", "tcgen05.mma": "tcgen05"}
_K16 = re.compile(
    r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k16\.f32\.(bf16\.bf16|f16\.f16)"
    r"|mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(bf16\.bf16|f16\.f16)\.f32"
    r"|tcgen05\.mma\.cta_group::\d\.kind::f16"
)
_K_WIDTH = re.compile(r"kWidth = (\d+)")
_FLOAT_ATOMIC = re.compile(r"(red|atom)\.\S*\.(f16|bf16|f32|f64)(x\d)?|cp\.reduce\.async\.bulk\S*")
_AMD_FLOAT_ATOMIC = re.compile(
    r"\b(?:(?:global|flat|buffer)_atomic|ds)_(?:pk_)?(?:add|min|max)_(?:rtn_)?b?f\d+\b"
)
_UNROUNDED = re.compile(r"(add|sub|mul|mad)(\.ftz|\.sat)*\.(f32|f64)(x2|\.b?f16)?")
_FUSED = re.compile(r"fma\.\S*\.f32(x2|\.b?f16)?")
_NARROW = re.compile(
    r"= (arith\.(?:add|sub|mul|div)f|math\.(?!absf)\w+) .*: (?:tensor<[\dx]*)?(b?f16)\b"
)
# In SASS: what `griddepcontrol` becomes, and what reads or writes memory that others share.
_OPCODE = re.compile(r"^\s*/\*\w{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_LET_NEXT_START, _WAIT_FOR_LAST = "PREEXIT", "ACQBULK"
_MEMORY = re.compile(r"(LDG|STG|LDGSTS|ATOMG?|RED|UTMALDG|UTMASTG|UBLKCP|UBLKRED|LD|ST)(\..*)?")


def shared(case: Case, code: Compiled) -> Iterator[str]:
    """Shared memory within what one program may have."""
    limit = LDS_LIMIT if code.arch == "gfx942" else SHARED_LIMIT[int(code.arch.removeprefix("sm_"))]
    if code.shared > limit:
        yield f"{code.shared} bytes of shared memory, at most {limit} expected"


def spills(case: Case, code: Compiled) -> Iterator[str]:
    """No register spilled, no stack frame, no other local memory."""
    if code.spills or code.stack:
        yield f"{code.spills} accesses to local memory, {code.stack} bytes of stack, none expected"


def float_atomics(case: Case, code: Compiled) -> Iterator[str]:
    """No atomic whose result depends on the order of arrival."""
    if code.arch == "gfx942":
        found = Counter(match[0] for match in _AMD_FLOAT_ATOMIC.finditer(code.text))
    else:
        found = _count(code, _FLOAT_ATOMIC)
    if found:
        yield f"{_listed(found)}, no atomic on floats expected"


def family(case: Case, code: Compiled) -> Iterator[str]:
    """Yield the MMA family the launch table names."""
    found = {
        name
        for one in instructions(code.text)
        for prefix, name in _FAMILY.items()
        if one.opcode.startswith(prefix)
    }
    expected = {case.mma} - {"fma", "none"}
    if found != expected:
        yield f"{' and '.join(sorted(found)) or 'no MMA'}, expected {case.mma}"
    if case.mma == "fma" and not any(_FUSED.fullmatch(one.opcode) for one in _code(code)):
        yield "no fma, expected one"


def k_step(case: Case, code: Compiled) -> Iterator[str]:
    """Sixteen products of 16-bit floats a step into binary32, k contiguous in both operands."""
    if case.dtype == "fp32" or case.mma in ("fma", "none"):
        return
    other = {one.opcode for one in _code(code) if is_mma(one) and not _K16.fullmatch(one.opcode)}
    if other:
        yield f"{', '.join(sorted(other))}, expected k16 steps into f32"
    # A wider operand layout hands the steps k in another order.
    widths = {int(width) for width in _K_WIDTH.findall(code.ttgir)} - {2}
    if widths:
        yield f"operands hold {_numbers(widths)} consecutive k a thread, expected 2"


def tf32(case: Case, code: Compiled) -> Iterator[str]:
    """No product of binary32 cut to 10 bits."""
    found = {one.opcode for one in _code(code) if "tf32" in one.opcode}
    if found:
        yield f"{', '.join(sorted(found))}, no tf32 expected"


def chain(case: Case, code: Compiled) -> Iterator[str]:
    """One chain an accumulator: as many steps as planned, k ascending, never two parts added."""
    if case.mma == "none":
        return
    found = chains(code.text)
    if case.k_steps is not None:
        lengths = {len(one.steps) for block in found for one in block} - {case.k_steps}
        if lengths or not found:
            yield (
                f"{_numbers(lengths) or 0} steps a pass on some accumulator, "
                f"expected {case.k_steps} on each"
            )
        # Attention merges segments by addition, so only a plain k loop is held to this.
        parts = joined(code.text)
        if parts:
            yield f"{len(parts)} additions join two accumulators, none expected"
    backwards = [one for block in found for one in block if _descends(code.text, one)]
    if backwards:
        yield f"{len(backwards)} chains do not take k in ascending order"


def contraction(case: Case, code: Compiled) -> Iterator[str]:
    """Nothing contracted that the source does not contract."""
    if code.fusion:
        yield "compiled with enable_fp_fusion, expected without"
    found = _count(code, _UNROUNDED)
    if found:
        yield f"{_listed(found)}, which may be contracted, expected .rn"
    # tl.fma is math.fma; a dot of binary32 is fma too.
    written = "math.fma" in code.ttgir or case.mma == "fma"
    fused = Counter[str]() if written else _count(code, _FUSED)
    if fused:
        yield f"{_listed(fused)}, but the source has no tl.fma"


def narrow(case: Case, code: Compiled) -> Iterator[str]:
    """No arithmetic in 16 bits: values are widened first and rounded once."""
    # Not in PTX: LLVM makes one 16-bit instruction of a product or sum rounded at once.
    found = Counter(f"{op} of {kind}" for op, kind in _NARROW.findall(code.ttgir))
    if found:
        yield f"{_listed(found)}, expected arithmetic in f32"


def approximate(case: Case, code: Compiled) -> Iterator[str]:
    """Correctly rounded instructions that keep subnormals, but for those the contract names."""
    allowed = APPROXIMATE.get(code.op, ())
    found = Counter(
        one.opcode
        for one in _code(code)
        if {"approx", "full", "ftz"} & set(one.opcode.split(".")) and one.opcode not in allowed
    )
    if found:
        yield f"{_listed(found)}, expected {' or '.join(allowed) or 'no approximation'}"


def pipeline(case: Case, code: Compiled) -> Iterator[str]:
    """As many buffers in flight as the table plans: one load too late halves them silently."""
    if case.buffers and code.shared < case.buffers:
        yield f"{code.shared} bytes of shared memory, buffers planned take {case.buffers}"


def tma(case: Case, code: Compiled) -> Iterator[str]:
    """Load by TMA exactly where planned."""
    loads = len(re.findall(r"\bUTMALDG\b", code.sass))
    if bool(loads) != case.tma:
        yield f"{loads} TMA loads, {'some' if case.tma else 'none'} expected"


def specialised(case: Case, code: Compiled) -> Iterator[str]:
    """No warp specialisation: no launch table plans for it."""
    if any(one.opcode.startswith("setmaxnreg") for one in _code(code)):
        yield "setmaxnreg: warps are specialised, not expected"


def turn(case: Case, code: Compiled) -> Iterator[str]:
    """Touch no memory before the kernel before this one has ended, where both may run at once."""
    if int(code.arch.removeprefix("sm_")) < OVERLAP_FROM:
        return
    opcodes = _OPCODE.findall(code.sass)
    expected = {_LET_NEXT_START: 1, _WAIT_FOR_LAST: int(starts_early(case))}
    if any(opcodes.count(name) != count for name, count in expected.items()):
        yield f"expected {_listed(Counter(expected))} (overlap.py)"
    elif starts_early(case):
        early = Counter(filter(_MEMORY.fullmatch, opcodes[: opcodes.index(_WAIT_FOR_LAST)]))
        if early:
            yield f"{_listed(early)} before {_WAIT_FOR_LAST}, none expected"


RULES: dict[str, Rule] = {
    "shared": shared,
    "spills": spills,
    "float-atomics": float_atomics,
    "family": family,
    "k-step": k_step,
    "tf32": tf32,
    "chain": chain,
    "contraction": contraction,
    "narrow": narrow,
    "approximate": approximate,
    "pipeline": pipeline,
    "tma": tma,
    "specialised": specialised,
    "turn": turn,
}
# What can be read in gfx942's code; the others read PTX.
ON_GFX942 = ("shared", "spills", "float-atomics")
# What tables plan for aligned rows; others are loaded by the element, slower, to the same bits.
ONLY_ALIGNED = ("pipeline", "spills")


def k_order(case: Case, code: Compiled) -> str:
    """Return how k is cut into steps; launch configurations of one weight must agree on it."""
    steps = {_step(one.opcode) for one in _code(code) if is_mma(one)}
    return f"{' and '.join(sorted(steps)) or 'single products'} of {case.dtype}"


def _step(opcode: str) -> str:
    if opcode.startswith("tcgen05"):  # the instruction names its kind only: 32 bytes of k
        return "k8" if "tf32" in opcode else "k32" if "f8" in opcode else "k16"
    shape = re.search(r"m\d+n\d+(k\d+)", opcode)
    return shape[1] if shape else opcode


def _code(code: Compiled) -> Iterator[Instruction]:
    return instructions(code.text)


def _count(code: Compiled, opcode: re.Pattern[str]) -> Counter[str]:
    return Counter(one.opcode for one in instructions(code.text) if opcode.fullmatch(one.opcode))


def _listed(found: Counter[str]) -> str:
    return ", ".join(f"{count} {opcode}" for opcode, count in sorted(found.items()))


def _numbers(values: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _descends(ptx: str, one: Chain) -> bool:
    """Return whether a step reads shared memory before the place of the step before it."""
    if not one.steps[0].opcode.startswith(("wgmma", "tcgen05")):
        return False
    for operand in (1, 2):
        offsets = descriptor_offsets(ptx, one, operand)
        if offsets is not None and any(b <= a for a, b in pairwise(offsets)):
            return True
    return False
