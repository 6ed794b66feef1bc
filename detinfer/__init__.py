"""detinfer: an LLM inference engine whose answers are bitwise reproducible.

``LLM`` and ``SamplingParams`` are imported on first use, so that ``import detinfer`` (and a spawned
engine process, which must set its environment before numba and torch load) stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detinfer.engine.llm import LLM
    from detinfer.params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name == "LLM":
        from detinfer.folders import check_folders

        check_folders()  # first: what loads next compiles into them
        from detinfer.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from detinfer.params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
