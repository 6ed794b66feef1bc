"""detinfer: an LLM inference engine whose answers are bitwise reproducible.

What it offers is imported on first use, so that ``import detinfer`` (and a spawned engine process,
which must set its environment before numba and torch load) stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detinfer.engine.llm import LLM
    from detinfer.params import SamplingParams
    from detinfer.recursive.params import SolveParams
    from detinfer.recursive.solver import Solver

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "SolveParams", "Solver", "__version__"]

_PLACES = {
    "LLM": "detinfer.engine.llm",
    "SamplingParams": "detinfer.params",
    "SolveParams": "detinfer.recursive.params",
    "Solver": "detinfer.recursive.solver",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("LLM", "Solver"):
        from detinfer.folders import check_folders

        check_folders()  # first: what loads next compiles into them
    return getattr(import_module(_PLACES[name]), name)
