"""What may not be written in a kernel's source, read from its syntax tree.

Machine code cannot show these: the order of a sum, or a launch without the options that the audit
compiles with. A line whose order truly does not matter says so and why, in a comment that starts
with ``order-free:``, as in ``tl.sum(hits, 0)  # order-free: integers``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from detinfer.compile_audit.cases import OPS

Problem = tuple[int, str]  # line, message

_BANNED = {
    "triton.autotune": "a choice by timing",
    "triton.heuristics": "a choice the launch tables do not show",
    "tl.make_block_ptr": "use pointers or a descriptor",
    "tl.advance": "use pointers or a descriptor",
    "tl.inline_asm_elementwise": "the interpreter cannot run it",
    "tl.dot_scaled": "no contract covers it",
}
_ORDERED = {"sum", "reduce", "cumsum", "cumprod", "associative_scan"}
_INEXACT = {
    *("exp", "exp2", "log", "log2", "sin", "cos", "erf", "tanh", "sqrt", "rsqrt"),
    *("sigmoid", "softmax", "fdiv"),
}
_INEXACT_BY_CONTRACT = {"attention": {"exp2"}}
_ORDER_FREE = re.compile(r"#\s*order-free: \S")


def lint(source: str, module: str) -> list[Problem]:
    """Problems of a kernel module's source, by line.

    Args:
        module: its last name, ``attention_work``; what stands before the ``_`` is the op.
    """
    op = module.partition("_")[0]
    tree = ast.parse(source)
    lines = source.splitlines()
    found = [*_banned(tree)]
    in_kernels: set[ast.AST] = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and _is_jit(function):
            for statement in function.body:
                in_kernels.update(ast.walk(statement))
    for node in in_kernels:
        if isinstance(node, ast.Call):
            own = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            found += _kernel_call(node, op, order_free=bool(_ORDER_FREE.search(own)))
    found += _launches(tree, op, in_kernels)
    return sorted(found)


def lint_file(path: Path) -> list[Problem]:
    """Problems of a kernel file."""
    return lint(path.read_text(), path.stem)


def _banned(tree: ast.Module) -> Iterator[Problem]:
    libdevice = "libdevice: its functions change with its version"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any("libdevice" in name for name in names):
                yield node.lineno, libdevice
        elif isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name in _BANNED:
                yield node.lineno, f"{name}: {_BANNED[name]}"
            elif node.attr == "libdevice":
                yield node.lineno, libdevice


def _kernel_call(node: ast.Call, op: str, *, order_free: bool) -> Iterator[Problem]:
    owner, _, name = _dotted(node.func).rpartition(".")
    if owner not in ("tl", "tl.math"):
        if isinstance(node.func, ast.Attribute) and node.func.attr in _ORDERED and not order_free:
            yield node.lineno, f".{node.func.attr}(): expected tl.{node.func.attr}"
    elif name == "dot":
        yield from _dot(node)
    elif name in _ORDERED and not order_free and not (name == "sum" and _sums_two(node)):
        yield node.lineno, f"tl.{name}: order changes with the layout; expected an axis of size 2"
    elif name.startswith("atomic_") and not order_free:
        yield node.lineno, f"tl.{name}: adds by order of arrival"
    elif name in _INEXACT and name not in _INEXACT_BY_CONTRACT.get(op, ()):
        yield node.lineno, f"{owner}.{name}: approximate; numeric.py has the contract's"


def _dot(node: ast.Call) -> Iterator[Problem]:
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    precision = keywords.get("input_precision")
    if not (isinstance(precision, ast.Constant) and precision.value == "ieee"):
        yield node.lineno, 'tl.dot: expected input_precision="ieee"'
    if len(node.args) < 3 and "acc" not in keywords:
        yield node.lineno, "tl.dot: expected the accumulator as an argument"


def _sums_two(node: ast.Call) -> bool:
    """``tl.sum(tl.reshape(v, (..., 2, ...)), axis)`` with both numbers in sight."""
    if len(node.args) != 2 or not isinstance(node.args[0], ast.Call):
        return False
    reshape, axis = node.args[0], node.args[1]
    if _dotted(reshape.func) != "tl.reshape" or len(reshape.args) != 2:
        return False
    shape = reshape.args[1]
    if not isinstance(shape, ast.Tuple) or not isinstance(axis, ast.Constant):
        return False
    if not isinstance(axis.value, int) or axis.value >= len(shape.elts):
        return False
    size = shape.elts[axis.value]
    return isinstance(size, ast.Constant) and size.value == 2


def _launches(tree: ast.Module, op: str, in_kernels: set[ast.AST]) -> Iterator[Problem]:
    names = _names_with_options(tree)
    launched = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
            if node in in_kernels:
                continue
            launched = True
            unpacked = [one.value for one in node.keywords if one.arg is None]
            if not any(_is_options(value) or _dotted(value) in names for value in unpacked):
                yield (
                    node.lineno,
                    "launch without **options(device): it may be contracted",
                )
    if launched and op not in OPS:
        yield 1, f"launches kernels, but compile_audit/cases has no {op}.py to compile them by"


def _names_with_options(tree: ast.Module) -> set[str]:
    """Name given a dict display that unpacks ``launch.options``."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            if any(key is None and _is_options(value) for key, value in pairs):
                found.update(_dotted(target) for target in node.targets)
    return found


def _is_options(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and _dotted(value.func).rpartition(".")[2] == "options"


def _is_jit(function: ast.FunctionDef) -> bool:
    decorators = (d.func if isinstance(d, ast.Call) else d for d in function.decorator_list)
    return any(_dotted(one) == "triton.jit" for one in decorators)


def _dotted(node: ast.expr) -> str:
    """``a.b.c``; empty for anything else."""
    if isinstance(node, ast.Attribute):
        owner = _dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return node.id if isinstance(node, ast.Name) else ""
