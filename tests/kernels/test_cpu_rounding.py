"""Kernels round by the contract whatever control word their threads were born with."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import numpy as np
import pytest
from control_words import KINDS, foreign_word
from llvmlite import binding, ir
from numba import njit, prange

from detinfer.kernels.cpu import matmul, rounding
from detinfer.kernels.cpu.rounding import CONTRACT, control_word, enter, leave
from detinfer.testing import thread_count

ITEMS, TINY = 64, 2.0**-140
RULES = ~0x3F  # without what MXCSR notes of past operations


@njit(parallel=True)
def thirds(x, out):
    for i in prange(ITEMS):
        out[i] = x[i] / x[i + ITEMS]


@njit(parallel=True)
def guarded_thirds(x, out):
    for i in prange(ITEMS):
        before = enter()
        out[i] = x[i] / x[i + ITEMS]
        leave(before)


@njit(parallel=True)
def words(out):
    for i in prange(ITEMS):
        out[i] = control_word()


def in_a_thread_of_its_own(function, *args):
    """Its parallel regions have workers of their own, born under its control word."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join()
    return results[0]


def divided(function, kind=None):
    """±1/3 and a subnormal by workers born under such a word, and their words before and after."""
    x = np.empty(2 * ITEMS, np.float32)
    x[:ITEMS], x[ITEMS:] = 1, 3
    x[1], x[2], x[ITEMS + 2] = -1, TINY, 2

    def run():
        out = np.empty(ITEMS, np.float32)
        seen = np.empty((2, ITEMS), np.int64)
        with thread_count(2):
            words(seen[0])
            function(x, out)
            words(seen[1])
        return out.tobytes(), seen

    def under_it():
        with foreign_word(kind):
            return run()

    return in_a_thread_of_its_own(under_it if kind else run)


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_computed_by_the_contract_and_the_workers_words_given_back(kind):
    expected, _ = divided(guarded_thirds)
    got, (before, after) = divided(guarded_thirds, kind)
    assert got == expected
    assert (before & RULES != CONTRACT).all()
    assert (after & RULES == before & RULES).all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_them_the_same_workers_give_other_bits(kind):
    expected, _ = divided(thirds)
    assert divided(thirds, kind)[0] != expected


@pytest.mark.parametrize("kind", KINDS)
def test_leave_gives_back_what_enter_found(kind):
    with foreign_word(kind):
        found = control_word()
        assert found & RULES != CONTRACT
        before = enter()
        assert (before, control_word()) == (found, CONTRACT)
        leave(before)
        assert control_word() == found
    assert control_word() & RULES == CONTRACT


def loops(source):
    """(function, body) of every parallel loop in a module."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for loop in ast.walk(function):
                if isinstance(loop, ast.For) and "prange" in ast.unparse(loop.iter):
                    yield function.name, loop


def unguarded(source):
    """Functions with a parallel loop whose items are not wholly between enter and leave."""
    return [
        name
        for name, loop in loops(source)
        if ast.unparse(loop.body[0]) != "before = enter()"
        or ast.unparse(loop.body[-1]) != "leave(before)"
        or any(isinstance(node, ast.Continue | ast.Break | ast.Return) for node in ast.walk(loop))
    ]


def test_every_parallel_loop_is_guarded():
    sources = [path.read_text() for path in Path(matmul.__file__).parent.rglob("*.py")]
    assert [unguarded(source) for source in sources] == [[]] * len(sources)
    assert sum(len(list(loops(source))) for source in sources) >= 12


def test_a_loop_without_its_guard_is_found():
    source = Path(matmul.__file__).read_text()
    assert unguarded(source.replace("        before = enter()\n", "", 1)) == ["linear"]
    assert unguarded(source.replace("        leave(before)\n", "")) == ["linear", "embedding"]


@pytest.mark.parametrize(
    ("triple", "read", "write", "instructions"),
    [
        ("x86_64-linux-gnu", rounding.read_mxcsr, rounding.write_mxcsr, ("stmxcsr", "ldmxcsr")),
        ("aarch64-linux-gnu", rounding.read_fpcr, rounding.write_fpcr, ("mrs", "msr\tfpcr")),
    ],
)
def test_the_instructions_of_each_machine_compile(triple, read, write, instructions):
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.IntType(64), [ir.IntType(64)]), "swap")
    builder = ir.IRBuilder(function.append_basic_block())
    before = read(builder)
    write(builder, function.args[0])
    builder.ret(before)
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(opt=3)
    assembly = machine.emit_assembly(binding.parse_assembly(str(module))).lower()
    first, second = (assembly.lower().find(one) for one in instructions)
    assert 0 < first < second, assembly
