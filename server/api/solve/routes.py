"""``POST /v1/solve``: puzzles in, answers out, whole or step by step."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from detinfer.engine.async_solver import AsyncSolver
from detinfer.errors import RequestError
from detinfer.recursive.result import Solution, TraceStep
from detinfer.server.api.bodies.strict import parse_body
from detinfer.server.api.openapi import body_of, failures, streamed
from detinfer.server.api.solve.body import (
    SolveRequest,
    SolveResponse,
    chosen,
    grids,
    solve_params,
)
from detinfer.server.api.solve.solving import Call, Update, solve_all
from detinfer.server.http.disconnect import until_disconnect
from detinfer.server.http.sse import EventStream, event
from detinfer.server.reply import MAX_HEADER_DIGESTS
from detinfer.server.service import Service
from detinfer.server.wire import json_response

router = APIRouter()

Value = dict[str, Any]


@router.post(
    "/v1/solve",
    responses={
        **streamed(
            SolveResponse | list[SolveResponse],
            "The answer; with `stream` server-sent events, one a step, then the answer, that end "
            "with `[DONE]`",
        ),
        **failures(400, 401, 404, 408, 413, 429, 500, 503, 504),
    },
    openapi_extra=body_of(SolveRequest),
)
async def solve(request: Request) -> Response:
    """Solve a puzzle, or a list of puzzles, with a tiny recursive model."""
    service = Service.of(request)
    solver = service.ready_solver()
    body = parse_body(SolveRequest, await request.body())
    reply = _Reply(service, solver, body)
    headers = {"x-detinfer-deterministic": str(reply.call.deterministic).lower()}
    if body.stream:
        return EventStream(reply.streamed(), headers)
    values = await until_disconnect(request.receive, reply.gathered())
    if len(values) <= MAX_HEADER_DIGESTS:
        headers["x-detinfer-digest"] = ", ".join(value["digest"] for value in values)
    return json_response(values if reply.call.many else values[0], headers=headers)


class _Reply:
    """The answers to one call."""

    def __init__(self, service: Service, solver: AsyncSolver, body: SolveRequest) -> None:
        self._service, self._solver = service, solver
        name = chosen(body.model, solver.info)
        about = solver.info.models[name]
        default = service.default_deterministic
        deterministic = default if body.deterministic is None else body.deterministic
        fingerprint = about.system_fingerprint if deterministic else about.fast_fingerprint
        if fingerprint is None:
            raise RequestError(
                "deterministic: got false, but this server runs without the fast mode",
                "deterministic",
            )
        params = solve_params(body)
        self._traced = params.trace
        self.call = Call(
            name=f"solve-{uuid.uuid4().hex}",
            model=name,
            grids=grids(body, params, solver.capacity),
            params=replace(params, trace=True) if body.stream else params,
            deterministic=deterministic,
            many=not isinstance(body.grid, str),
        )
        # What all answers share.
        self._frame: Value = {
            "object": "solution",
            "created": int(time.time()),
            "model": name,
            "deterministic": deterministic,
            "system_fingerprint": fingerprint,
        }

    async def gathered(self) -> list[Value]:
        """Return every answer, in the order of the puzzles."""
        found: dict[int, Value] = {}
        with self._service.answering():
            async with aclosing(self._updates()) as updates:
                async for index, update in updates:
                    if isinstance(update, Solution):
                        found[index] = self._value(index, update)
        return [found[index] for index in range(len(self.call.grids))]

    async def streamed(self) -> AsyncGenerator[bytes, None]:
        """Yield an event a step and an answer."""
        with self._service.answering():
            async with aclosing(self._updates()) as updates:
                async for index, update in updates:
                    place = {"index": index} if self.call.many else {}
                    if isinstance(update, Solution):
                        yield event({**place, **self._value(index, update)})
                    else:
                        yield event({**place, **_step(update)})

    def _updates(self) -> AsyncGenerator[Update, None]:
        return solve_all(self._service, self._solver, self.call)

    def _value(self, index: int, answer: Solution) -> Value:
        return {
            "id": f"{self.call.name}-{index}" if self.call.many else self.call.name,
            **self._frame,
            "status": answer.status,
            "solution": answer.grid if answer.status == "solved" else None,
            "grid": answer.grid,
            "puzzle": answer.puzzle,
            "valid": answer.valid,
            "clues_kept": answer.clues_kept,
            "steps": answer.steps,
            "halted_by": answer.halted_by,
            "rollout": answer.rollout,
            "q": None if answer.q is None else {"value": answer.q, "hex": answer.q_hex},
            "reason": answer.reason,
            "trace": [_step(step) for step in answer.trace] if self._traced else None,
            "digest": answer.digest,
            "usage": {"steps": answer.steps},
        }


def _step(step: TraceStep) -> Value:
    return {
        "step": step.step,
        "grid": step.grid,
        "changed": step.changed,
        "violations": step.violations,
        "q": {"value": step.q, "hex": step.q_hex},
        "chain": step.chain,
        "rollout": step.rollout,
    }
