"""PTX, read as far as the rules need it: instructions, basic blocks, accumulator chains."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_COMMENT = re.compile(r"//[^\n]*")
_LABEL = re.compile(r"^\s*[$\w]+:")
_BLOCK = re.compile(r"^\s*\$L__BB")  # other labels are for debuggers
_STATEMENT = re.compile(r"^\{?\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]\s][^,{}\[\]]*")
_REGISTER = re.compile(r"%\w+")
_TRUE = {"-1", "1"}

MMA = ("wgmma.mma_async", "mma.sync", "tcgen05.mma")
FMA = ("fma.rn.f32", "fma.rn.f32x2")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One PTX instruction, without its guard."""

    opcode: str
    operands: tuple[str, ...]

    @property
    def writes(self) -> tuple[str, ...]:
        """Registers it sets: its first operand, where that is no address."""
        first = self.operands[0] if self.operands else ""
        return () if first.startswith("[") else registers(first)


@dataclass
class Chain:
    """Consecutive MMA steps (or fma) of one basic block, each adding to the one before it."""

    steps: list[Instruction] = field(default_factory=list)


def registers(operand: str) -> tuple[str, ...]:
    """Name of the registers in an operand."""
    return tuple(_REGISTER.findall(operand))


@functools.lru_cache(maxsize=2)  # several rules read the same code
def blocks(ptx: str) -> tuple[tuple[Instruction, ...], ...]:
    """Return basic blocks in the order of the text."""
    found: list[tuple[Instruction, ...]] = []
    block: list[Instruction] = []
    for line in _COMMENT.sub("", ptx).splitlines():
        if _LABEL.match(line):
            if _BLOCK.match(line):
                found.append(tuple(block))
                block = []
            continue
        for text in line.split(";"):
            match = _STATEMENT.match(text.strip())
            if match is None:
                continue
            block.append(Instruction(match[1], tuple(_OPERAND.findall(match[2]))))
            if match[1].startswith("bra"):
                found.append(tuple(block))
                block = []
    found.append(tuple(block))
    return tuple(one for one in found if one)


def instructions(ptx: str) -> Iterator[Instruction]:
    """All instructions in the order of the text."""
    for block in blocks(ptx):
        yield from block


def is_mma(one: Instruction) -> bool:
    """Return whether a tensor core runs it."""
    return one.opcode.startswith(MMA)


def chains(ptx: str) -> list[list[Chain]]:
    """Accumulator chains, block by block; only blocks that have some.

    A kernel without MMA is read by its ``fma``; there, blocks count whose fma build on each other.
    """
    constants = _constants(ptx)
    on_cores = any(is_mma(one) for one in instructions(ptx))
    found = [list(_chains(block, on_cores, constants)) for block in blocks(ptx)]
    least = 1 if on_cores else 2
    return [one for one in found if any(len(chain.steps) >= least for chain in one)]


def _chains(
    block: Iterable[Instruction], on_cores: bool, constants: dict[str, set[str]]
) -> Iterator[Chain]:
    open_: dict[tuple[str, ...], Chain] = {}
    owner: dict[str, tuple[str, ...]] = {}
    for one in block:
        wanted = is_mma(one) if on_cores else one.opcode in FMA
        if not wanted:
            # A write to an accumulator ends its chain: the next step starts from something else.
            for register in one.writes:
                open_.pop(owner.pop(register, ()), None)
            continue
        before, after = _accumulator(one)
        chain = open_.pop(before, None)
        if chain is None or not _adds(one, constants):
            chain = Chain()
            yield chain
        chain.steps.append(one)
        open_[after] = chain
        owner.update(dict.fromkeys(after, after))


def _accumulator(one: Instruction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a step reads and writes; tensor memory goes by its address."""
    if one.opcode.startswith("tcgen05"):
        return (one.operands[0],), (one.operands[0],)
    after = registers(one.operands[0])
    return (after if one.opcode.startswith("wgmma") else registers(one.operands[3])), after


def _adds(one: Instruction, constants: dict[str, set[str]]) -> bool:
    """Return whether a step certainly adds to its accumulator, rather than starting it afresh."""
    if one.opcode.startswith("wgmma"):
        flag = one.operands[3]
    elif one.opcode.startswith("tcgen05"):
        flag = one.operands[-1]
    else:
        return True
    return bool(constants.get(flag, {flag})) and constants.get(flag, {flag}) <= _TRUE


def _constants(ptx: str) -> dict[str, set[str]]:
    """Return what each predicate may be: the constants moved into it, or ``?``."""
    values: dict[str, set[str]] = defaultdict(set)
    for one in instructions(ptx):
        if one.opcode == "mov.pred" and not one.operands[1].startswith("%"):
            values[one.operands[0]].add(one.operands[1].strip())
        else:
            for register in one.writes:
                if register.startswith("%p"):
                    values[register].add("?")
    return values


def joined(ptx: str) -> list[Instruction]:
    """Additions of two accumulators (through moves and other additions): a sum cut in parts."""
    everything = list(instructions(ptx))
    sums: set[str] = set()
    for block in chains(ptx):
        for chain in block:
            for one in chain.steps:
                sums.update(one.writes)
    for one in everything:
        if one.opcode.startswith("tcgen05.ld"):
            sums.update(one.writes)
    while True:
        size = len(sums)
        for one in everything:
            carries = one.opcode in ("mov.b32", "mov.f32", "mov.b64") or _is_sum(one)
            if carries and any(r in sums for text in one.operands[1:] for r in registers(text)):
                sums.update(one.writes)
        if len(sums) == size:
            break
    return [
        one
        for one in everything
        if _is_sum(one) and all(set(registers(text)) & sums for text in one.operands[1:3])
    ]


def _is_sum(one: Instruction) -> bool:
    return re.fullmatch(r"(add|sub)\S*\.f32(x2)?", one.opcode) is not None


def descriptor_offsets(ptx: str, chain: Chain, operand: int) -> list[int] | None:
    """Return where in shared memory each step of a chain reads, relative to one place, in 16 bytes.

    Returns:
        None where an operand comes from registers, or its address cannot be traced.
    """
    definitions = _definitions(ptx)
    places = []
    for one in chain.steps:
        place = _place(one.operands[operand].strip(), definitions)
        if place is None:
            return None
        places.append(place)
    if len({root for root, _ in places}) != 1:
        return None
    return [offset - places[0][1] for _, offset in places]


@functools.lru_cache(maxsize=2)
def _definitions(ptx: str) -> dict[str, Instruction | None]:
    """Return the instruction that sets a register; None where there are several."""
    found: dict[str, Instruction | None] = {}
    for one in instructions(ptx):
        for register in one.writes:
            found[register] = None if register in found else one
    return found


def _place(register: str, definitions: dict[str, Instruction | None]) -> tuple[str, int] | None:
    """Return a 64-bit descriptor as a register and a constant that was added to it."""
    if not register.startswith("%rd"):
        return None
    offset = 0
    while (one := definitions.get(register)) is not None:
        if not one.opcode.startswith(("add.s64", "or.b64")):
            break
        constant = one.operands[2].strip()
        if constant.startswith("%"):
            break
        register, offset = one.operands[1].strip(), offset + int(constant, 0)
    return register, offset
