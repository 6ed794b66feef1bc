"""Requests whose grammars are being compiled: they wait apart, and hold up nobody."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait

from detinfer.engine.constraint import Constraint
from detinfer.engine.request import Request
from detinfer.errors import RequestError


class Compiling:
    """Requests by id, in order of arrival, each with its grammar to come."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Request, Future[Constraint]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def add(self, request: Request, constraint: Future[Constraint]) -> None:
        """Keep a request until its grammar is there."""
        self._waiting[request.request_id] = request, constraint

    def remove(self, request_id: str) -> Request | None:
        """Take a request out; None if there is no such one."""
        request, constraint = self._waiting.pop(request_id, (None, None))
        if constraint is not None:
            constraint.cancel()
        return request

    def done(self, seconds: float) -> list[tuple[Request, Constraint | RequestError]]:
        """Take out those whose grammars are there, or cannot be; wait for one, but not for long."""
        wait([one for _, one in self._waiting.values()], seconds, FIRST_COMPLETED)
        found: list[tuple[Request, Constraint | RequestError]] = []
        for request_id, (request, constraint) in list(self._waiting.items()):
            if constraint.done():
                del self._waiting[request_id]
                found.append((request, settled(constraint)))
        return found


def settled(constraint: Future[Constraint]) -> Constraint | RequestError:
    """Wait for a grammar; return it, or why there is none."""
    try:
        return constraint.result()
    except RequestError as error:
        return error
