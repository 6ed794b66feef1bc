"""Solvers in a process of their own, as an event loop has them.

Of its own, beside the language model's: neither's steps wait for the other's, each is killed and
told of alone, and an event loop has no kernels in its process.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from detinfer.engine.process import Add
from detinfer.engine.remote import Remote
from detinfer.engine.solver_config import SolveOutput, SolverConfig, SolverInfo
from detinfer.errors import DetinferError
from detinfer.garbage import uncollected
from detinfer.recursive.params import SolveParams
from detinfer.recursive.result import Solution, TraceStep

if TYPE_CHECKING:
    from detinfer.engine.solver_host import SolverHost


def load_solvers(config: SolverConfig) -> SolverHost:
    """Return the factory outside tests."""
    with uncollected():
        from detinfer.engine.solver_host import load_host

    return load_host(config)


class AsyncSolver(Remote[SolverInfo, SolveOutput]):
    """Solvers in their own process; made by ``start`` and used from one event loop."""

    output = SolveOutput
    fields = (0, 2)
    load = staticmethod(load_solvers)

    async def solve(
        self, model: str, grid: str, params: SolveParams, request_id: str, deterministic: bool
    ) -> AsyncGenerator[TraceStep | Solution, None]:
        """Yield every step of a puzzle, if ``params.trace`` asks for them, then the solution.

        Closing or cancelling the iterator gives the puzzle up.

        Args:
            model: one of ``info.models``.
            grid: the board.
            params: how long to try.
            request_id: never used before.
            deterministic: by the contract's kernels, or by PyTorch's.

        Raises:
            RequestError: no board of the model's task, or not one solution.
            QueueFullError: too many puzzles are open.
            GenerationTimeoutError: it took too long from its first step on.
            EngineDeadError: the process is shutting down, or died.
        """
        add = Add(request_id, (model, grid, params, deterministic))
        outputs = self._outputs(add, len(grid), lambda: None)
        try:
            async for output in outputs:
                for step in output.steps:
                    yield step
                if isinstance(output.end, DetinferError):
                    raise output.end
                if output.end is not None:
                    yield output.end
        finally:
            await outputs.aclose()
