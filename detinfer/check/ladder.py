"""The check of a server, rung by rung: alone, in batches of itself, under load, and further.

A server of any make has these, and a difference on a low rung explains those above it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace

from detinfer.check.client import Client
from detinfer.check.counts import Rung
from detinfer.check.draw import draw_loads
from detinfer.check.families import BATCH, NEIGHBOURS, only
from detinfer.check.load import Load, Row
from detinfer.check.openai_subject import OpenAISubject
from detinfer.check.prompt_result import Kinds
from detinfer.check.result import CheckResult
from detinfer.check.runner import Check, Mode
from detinfer.check.server_subject import ServerSubject

_ALONE, _COPIES = 4, 4  # one in so many runs is alone, one beside copies of itself


def server_subject(
    url: str, concurrency: int, api_key: str | None, timeout: float
) -> ServerSubject | OpenAISubject:
    """Return what a server is asked through: our own routes where it has them.

    Raises:
        ConfigError: an unusable address or key.
        DetinferError: it cannot be reached, or is of neither kind.
    """
    client = Client(url, api_key, timeout)
    try:
        status, content, _ = client.raw("GET", "/server_info", None)
    except OSError as error:
        raise client.unreachable(error) from None
    try:
        told = json.loads(content)
        # An error of ours says what is wrong with a server of ours.
        ours = "engine" in told or (status != 404 and "param" in told.get("error", ()))
    except (ValueError, TypeError, AttributeError):
        ours = False
    if ours:
        return ServerSubject(url, concurrency, api_key, timeout)
    return OpenAISubject(url, concurrency, api_key, timeout)


class LadderCheck(Check):
    """A ``Check`` that begins alone, then beside copies, and counts its rungs."""

    def found(self) -> CheckResult:
        """See ``Check.found``."""
        judged = self._by_mode[self.modes[0]]
        rungs = (
            Rung("repeats alone", judged.of(_alone)),
            Rung("batch sizes", judged.of(_copies)),
            Rung("under load", judged.of(_under_load)),
            Rung("restarts", None, "not ours to restart"),
            Rung("another machine", None, "--compare A.json B.json"),
        )
        return replace(super().found(), ladder=rungs)

    def _loads(self, mode: Mode) -> Iterator[Load]:
        numbers = itertools.count(1)
        drawn = []
        for index, target in enumerate(self.targets):
            runs = target.runs_of(self.runs)
            alone, copies = runs // _ALONE, runs // _COPIES if BATCH in self.families else 0
            target, _ = self.single(mode, index)
            row = Row(target.prompt, target.params, index)
            sizes = itertools.cycle(_sizes(self.max_rows))
            for size in itertools.repeat(1, alone):
                yield Load(next(numbers), (row,) * size)
            while copies > 0:
                size = min(next(sizes), copies)
                yield Load(next(numbers), (row,) * size)
                copies -= size
            drawn.append(runs - alone - (runs // _COPIES if BATCH in self.families else 0))
        loads = draw_loads(
            self.targets,
            drawn,
            self.subject.bounds,
            self.seed,
            deterministic=mode == "deterministic",
            fast_neighbours=self.fast_neighbours,
            families=self.families,
        )
        for load in loads:
            yield only(replace(load, number=next(numbers)), self.subject.bounds, self.families)


def _sizes(most: int) -> list[int]:
    """Return the powers of two up to the largest load, and that."""
    return sorted({*(1 << k for k in range(1, most.bit_length())), most})


def _alone(kinds: Kinds) -> bool:
    return not kinds


def _copies(kinds: Kinds) -> bool:
    return BATCH in kinds and NEIGHBOURS not in kinds


def _under_load(kinds: Kinds) -> bool:
    return NEIGHBOURS in kinds
