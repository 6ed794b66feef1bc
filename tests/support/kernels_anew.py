"""The packed kernels once more, from edited source: what seeded defects of them are made of.

The copy is a package of its own name, in no cache on disk, and runs on one thread.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numba

from detinfer.kernels.cpu.fused import step
from detinfer.kernels.cpu.packed import linear as packed

_HERE = Path(packed.__file__).parent
_numbers = itertools.count()
_COMPILER = """
import functools

from detinfer.kernels.cpu import jit as _jit

numba = _jit.numba

FEATURES = frozenset({features!r})
kernel = functools.partial(numba.njit, nogil=True, error_model="numpy")
parallel_kernel = kernel
"""

Edit = tuple[str, str, str]
"""A file of kernels/cpu/packed/, a piece of its source, and what stands there instead."""


def packed_anew(
    folder: Path, edits: Iterable[Edit] = (), features: Iterable[str] | None = None
) -> ModuleType:
    """Import packed/linear.py of a copy of the package with other pieces of source.

    Args:
        folder: where the copy is written; an empty one.
        edits: each piece must be there once.
        features: of the CPU, as ``jit.FEATURES`` has them, which choose how integers are summed;
            None for this one's.
    """
    name = f"packed_anew_{next(_numbers)}"
    sources = {path.name: path.read_text() for path in _HERE.glob("*.py")}
    changed = set()
    for file, old, new in edits:
        found = sources[file].count(old)
        assert found == 1, f"{old!r} is {found} times in kernels/cpu/packed/{file}: name it anew"
        sources[file] = sources[file].replace(old, new)
        changed.add(file)
    if features is None:
        from detinfer.kernels.cpu.jit import FEATURES as features
    sources["jit.py"] = _COMPILER.format(features=sorted(features))
    (folder / name).mkdir()
    for file, text in sources.items():
        text = text.replace("detinfer.kernels.cpu.packed", name)
        (folder / name / file).write_text(text.replace("detinfer.kernels.cpu.jit", f"{name}.jit"))
    sys.path.insert(0, str(folder))
    try:
        anew = importlib.import_module(f"{name}.linear")
    finally:
        sys.path.remove(str(folder))
    if not changed & {"linear.py", "rows.py"}:  # what calls the tiles is the same: compiled already
        vars(anew)["linear"] = packed.linear
    vars(anew)["embedding"] = packed.embedding
    return anew


def step_anew(*changes: tuple[str, str], module: ModuleType = step) -> ModuleType:
    """Return fused/step.py, or another step, with other pieces of source, each there once.

    Threads are as ever. What is written there may dawdle by ``_relax``.
    """
    source = inspect.getsource(module)
    compiled = "from detinfer.kernels.cpu.jit import kernel, parallel_kernel\n"
    for old, new in ((compiled, "from detinfer.kernels.cpu.team import _relax\n"), *changes):
        found = source.count(old)
        assert found == 1, f"{old!r} is {found} times in {module.__name__}: name it anew"
        source = source.replace(old, new)
    module = ModuleType("step_anew")
    compiler = functools.partial(numba.njit, nogil=True, error_model="numpy")
    space = {"kernel": compiler, "parallel_kernel": functools.partial(compiler, parallel=True)}
    vars(module).update(space)
    exec(compile(source, "step_anew", "exec"), vars(module))
    return module
