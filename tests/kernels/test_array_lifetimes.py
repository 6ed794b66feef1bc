"""No kernel keeps the address of an array of its own in place of the array.

Numba frees an array at the end of the block it is last named in, whatever holds its address: before
the loop that uses it. So the address is asked for where it is handed on, and the array stays named.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numba
import numpy as np
import pytest

KERNELS = sorted((Path(__file__).parents[2] / "kernels" / "cpu").rglob("*.py"))
MAKERS = {"empty", "zeros", "ones", "full", "arange", "empty_like", "regions"}


def kept_addresses(source: str) -> list[int]:
    """Lines after which an array made in the same function and loop is but an address."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and _is_compiled(function):
            shared = {name for loop in _parallel(function) for name in _made(function, but=loop)}
            for assigned in _assignments(function):
                inside = any(assigned in ast.walk(loop) for loop in _parallel(function))
                own = set(_made(function)) - (shared if inside else set())
                kept = own & set(_addresses(assigned.value))
                if any(_last_named(function, name) <= assigned.end_lineno for name in kept):
                    found.append(assigned.lineno)
    return found


def _is_compiled(function):
    return any("kernel" in ast.unparse(decorator) for decorator in function.decorator_list)


def _assignments(function):
    return [node for node in ast.walk(function) if isinstance(node, ast.Assign)]


def _parallel(function):
    """Loops whose body Numba makes a function of its own: what they read of outside outlives it."""
    return [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.For) and "prange" in ast.unparse(node.iter)
    ]


def _made(function, but=None):
    outside = set(ast.walk(but)) if but is not None else set()
    for assigned in _assignments(function):
        pairs = [(assigned.targets[0], assigned.value)]
        if isinstance(assigned.targets[0], ast.Tuple) and isinstance(assigned.value, ast.Tuple):
            pairs = list(zip(assigned.targets[0].elts, assigned.value.elts, strict=True))
        for target, value in pairs:
            maker = value.func if isinstance(value, ast.Call) else None
            name = getattr(maker, "attr", getattr(maker, "id", None))
            if name in MAKERS and isinstance(target, ast.Name) and assigned not in outside:
                yield target.id


def _last_named(function, name):
    return max(n.lineno for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == name)


def _addresses(value):
    for node in ast.walk(value):
        if ast.unparse(node).endswith(".ctypes.data") and isinstance(node, ast.Attribute):
            yield ast.unparse(node).removesuffix(".ctypes.data")


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_no_address_outlives_its_array(path):
    assert kept_addresses(path.read_text()) == []


def test_it_would_be_found():
    kept = """
@kernel
def f(n):
    a = np.empty(n)
    p = a.ctypes.data
    for i in range(n):
        g(p)
"""
    assert kept_addresses(kept) == [5]
    assert not kept_addresses(
        kept.replace("g(p)", "g(a.ctypes.data)").replace("p = a.ctypes.data", "pass")
    )


def test_numba_does_free_it():
    @numba.njit
    def reused(n):
        a, same = np.empty(n), 0
        p = a.ctypes.data
        for _ in range(3):
            same += np.empty(n).ctypes.data == p
        return same

    assert reused(1000)
