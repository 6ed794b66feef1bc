"""Loads of puzzles on a running server: the same solves, from as many clients as there are rows."""

from __future__ import annotations

from typing import Any

from detinfer.check.answer import Answer
from detinfer.check.arrivals import TRIES, answers
from detinfer.check.client import TIMEOUT, Client
from detinfer.check.load import Load, PuzzleRow, Row, SolverPlacement, that_were_set
from detinfer.check.solver_answer import SolverAnswer
from detinfer.check.solver_check import made_targets, one_puzzle
from detinfer.check.target import Bounds, Target
from detinfer.errors import ConfigError, DetinferError
from detinfer.recursive.tasks import TASKS


class SolverServerSubject:
    """Plays loads of puzzles on a server, which may be serving others meanwhile.

    Threads and the slots of a step are the server's own. Strangers are puzzles of the first other
    solver it serves, if it has one.

    Args:
        url: where the server is.
        solver: which of its solvers is checked.
        max_rows: most puzzles in a load.
        api_key: its key, if it has one.
        timeout: seconds without a byte from the server.

    Raises:
        ConfigError: an unusable address, a key the server does not take, or no solver of that name.
        DetinferError: the server cannot be reached, or serves no solver that is known here.
    """

    tries = TRIES

    def __init__(
        self,
        url: str,
        solver: str,
        max_rows: int = 32,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._client = Client(url, api_key, timeout)
        self.source = f"{solver} at {self._client.url}"
        served = self._client.get("/server_info").get("solvers")
        try:
            models = served["models"]
            if solver not in models:
                named = ", ".join(models)
                raise ConfigError(f"--solver: got {solver!r}, the server has {named}")
            about = models[solver]
            self._task = TASKS[about["task"]]
            others = [(name, TASKS[models[name]["task"]]) for name in models if name != solver]
            self.fingerprint = str(about["system_fingerprint"])
            self.parts = {str(name): str(part) for name, part in about["fingerprint"].items()}
            fast = bool(served["allow_fast"])
        except (KeyError, TypeError, AttributeError):
            raise DetinferError(
                f"{self._client.url}: serves no solver that is known here (/server_info lacks what "
                "it should tell)"
            ) from None
        self._solver = solver
        self._stranger = [(name, one_puzzle(task)) for name, task in others[:1]]
        self.bounds = Bounds(
            self._task.vocab,
            self._task.cells,
            max_rows,
            fast,
            other_models=bool(self._stranger),
        )

    def targets(self) -> list[Target]:
        """Return puzzles of the solver's own task."""
        return made_targets(self._task)

    def stats(self) -> dict[str, int]:
        """See ``Subject.stats``."""
        stats = self._client.get("/server_info").get("solvers", {}).get("stats", {})
        return {str(name): value for name, value in stats.items() if isinstance(value, int)}

    def play(self, load: Load) -> dict[int, Answer]:
        """See ``Subject.play``."""
        assert isinstance(load.placement, SolverPlacement)
        deterministic = load.placement.deterministic
        return answers(load, lambda row: self._ask(row, deterministic))

    def _ask(self, row: Row, deterministic: bool) -> Answer | None:
        assert isinstance(row, PuzzleRow)
        [(model, grid)] = self._stranger if row.stranger else [(self._solver, row.prompt)]
        asked = {"model": model, "grid": grid, "deterministic": deterministic}
        body = asked | that_were_set(row.params)
        if row.abort_after is not None:
            self._client.post_and_leave("/v1/solve", body, row.abort_after)
            return None
        value = self._client.post("/v1/solve", body)
        return None if row.target is None else self._read(value, deterministic)

    def _read(self, value: Any, deterministic: bool) -> Answer:
        try:
            told = value | {"q_hex": "" if value["q"] is None else value["q"]["hex"]}
            answer = SolverAnswer.of_told(self._task, told)
            did, fingerprint = value["deterministic"], value["system_fingerprint"]
        except (KeyError, TypeError):
            raise DetinferError(
                f"{self.source}: not a detinfer server (/v1/solve answered without what a solution "
                "has)"
            ) from None
        if did is not deterministic:
            raise DetinferError(
                f"{self.source}: asked for deterministic {deterministic}, got {did}"
            )
        if deterministic and fingerprint != self.fingerprint:
            raise DetinferError(
                f"{self.source}: its fingerprint changed from {self.fingerprint} to {fingerprint}"
            )
        return answer
