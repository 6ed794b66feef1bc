"""A repro file: a load that showed a difference, to be played again anywhere."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from detinfer import __version__
from detinfer.check.answer import Answer
from detinfer.check.bounded import read_bounded
from detinfer.check.load import Load, Placement, PuzzleRow, Row, SolverPlacement, that_were_set
from detinfer.check.result import CheckResult
from detinfer.check.subject import Subject
from detinfer.errors import ConfigError, RequestError
from detinfer.params import SamplingParams
from detinfer.recursive.params import SolveParams

FORM = "detinfer-repro-1"
MAX_BYTES = 16 << 20
TRIES = 5


def render_repro(result: CheckResult) -> str:
    """Return the shrunk load of a result that has one."""
    shrunk = result.shrunk
    assert shrunk is not None
    placement = shrunk.load.placement
    told = {
        "form": FORM,
        "detinfer": __version__,
        "source": result.source,
        "system_fingerprint": result.fingerprint,
        "noun": result.noun,
        "takes": shrunk.families,
        "row": shrunk.row,
        "rows": [_row(row) for row in shrunk.load.rows],
        "placement": placement and asdict(placement),
        "parting": shrunk.parting and shrunk.parting.to_json(),
        "digests": {"alone": shrunk.expected.digest, "in the load": shrunk.got.digest},
    }
    return json.dumps(told, ensure_ascii=False, indent=1) + "\n"


def _row(row: Row) -> dict[str, Any]:
    told = {"prompt": row.prompt, "params": that_were_set(row.params), "arrival": row.arrival}
    if row.abort_after is not None:
        told["abort_after"] = row.abort_after
    if isinstance(row, PuzzleRow):
        told["stranger"] = row.stranger
    return told


class Repro:
    """A repro file.

    Args:
        path: the file.

    Raises:
        ConfigError: there is none, or it is no repro file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        data = read_bounded(path, MAX_BYTES, self._wrong)
        try:
            told = json.loads(data)
            form = str(told["form"])
            self.noun = str(told["noun"])
            self.row = int(told["row"])
            self.load = self._load(told)
            target = self.load.rows[self.row]
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError, IndexError) as bad:
            why = f" ({bad})" if isinstance(bad, RequestError) else ""
            raise self._wrong(f"not a repro file{why}") from None
        if form != FORM:
            raise self._wrong(f"form {form!r:.40}, expected {FORM!r}")
        self.alone = Load(0, (type(target)(target.prompt, target.params, 0),), self._calm())

    def _load(self, told: dict[str, Any]) -> Load:
        puzzle = self.noun == "puzzle"
        asked: type[Any] = SolveParams if puzzle else SamplingParams
        kind: type[Row] = PuzzleRow if puzzle else Row
        place: type[Any] = SolverPlacement if puzzle else Placement
        rows = []
        for at, one in enumerate(told["rows"]):
            prompt = one["prompt"] if isinstance(one["prompt"], str) else tuple(one["prompt"])
            params = asked(**one["params"])
            rest = {name: one[name] for name in ("abort_after", "stranger") if name in one}
            target = 0 if at == self.row else None
            rows.append(kind(prompt, params, target, int(one["arrival"]), **rest))
        placement = told["placement"]
        if any(not isinstance(one, int | None) for one in (placement or {}).values()):
            raise TypeError("a placement is made of numbers")
        return Load(1, tuple(rows), None if placement is None else place(**placement))

    def _calm(self) -> SolverPlacement | None:
        """Return how a puzzle is solved alone."""
        placement = self.load.placement
        if not isinstance(placement, SolverPlacement):
            return None
        return SolverPlacement(placement.deterministic, 1, 1)

    def play(self, subject: Subject) -> tuple[Answer, Answer]:
        """Return the answer alone, and in the load: one that differs, if there is one."""
        [alone] = subject.play(self.alone).values()
        for _ in range(TRIES):
            got = subject.play(self.load)[self.row]
            if got != alone:
                break
        return alone, got

    def _wrong(self, what: str) -> ConfigError:
        return ConfigError(f"--repro: {self._path}: {what}")
