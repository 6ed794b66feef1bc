"""Puzzles of one call to the solvers: start, merge, count, abort."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from detinfer.engine.async_solver import AsyncSolver
from detinfer.errors import EngineDeadError, QueueFullError, RequestError
from detinfer.recursive.params import SolveParams
from detinfer.recursive.result import Solution, TraceStep
from detinfer.server.errors import GenerationError, UnavailableError
from detinfer.server.service import Service

Update = tuple[int, TraceStep | Solution]


@dataclass(frozen=True)
class Call:
    """What one call asks for.

    Attributes:
        name: of the call; each puzzle's begins with it.
        model: one of the solvers'.
        grids: the boards, unread.
        many: whether a list was given.
    """

    name: str
    model: str
    grids: Sequence[str]
    params: SolveParams
    deterministic: bool
    many: bool


async def solve_all(
    service: Service, solver: AsyncSolver, call: Call
) -> AsyncGenerator[Update, None]:
    """Yield what comes of every puzzle, by its place in the call, until each has its solution.

    Closing the generator, or an error in one puzzle, gives them all up.

    Raises:
        GenerationError: a step gave what is no number.
        DetinferError: the solver refused a puzzle or died.
    """
    ready: asyncio.Queue[Update | Exception] = asyncio.Queue()

    async def pump(index: int) -> None:
        try:
            async with aclosing(_one(service, solver, call, index)) as updates:
                async for update in updates:
                    ready.put_nowait((index, update))
        except Exception as error:
            ready.put_nowait(error)

    pumps = [asyncio.create_task(pump(index)) for index in range(len(call.grids))]
    unsolved = len(pumps)
    try:
        while unsolved:
            update = await ready.get()
            if isinstance(update, Exception):
                raise update
            unsolved -= isinstance(update[1], Solution)
            yield update
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _one(
    service: Service, solver: AsyncSolver, call: Call, index: int
) -> AsyncGenerator[TraceStep | Solution, None]:
    """Yield what comes of one puzzle, and count how it ends."""
    solving = service.metrics.solving
    name = f"{call.name}-{index}"
    ended = "abort"
    updates = solver.solve(call.model, call.grids[index], call.params, name, call.deterministic)
    try:
        async with aclosing(updates):
            async for update in updates:
                if isinstance(update, Solution):
                    if update.status == "error":
                        raise GenerationError(update.reason or "the solver gave up on this puzzle")
                    ended = ""
                    solving.add(update)
                yield update
    except QueueFullError:
        ended = ""
        raise
    except RequestError as error:
        ended = ""
        place = f"grid[{index}]" if call.many else "grid"
        message = str(error).replace("grid:", f"{place}:", 1)
        raise RequestError(message, "grid", error.code) from None
    except EngineDeadError as error:
        ended = "error"
        if service.draining:
            raise UnavailableError(str(error), "draining") from None
        raise
    except Exception:
        ended = "error"
        raise
    finally:
        if ended:
            solving.ended[ended] += 1
