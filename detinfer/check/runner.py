"""The check itself: each prompt alone, then under one load after another."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from detinfer.check.answer import Answer
from detinfer.check.draw import draw_loads
from detinfer.check.families import BATCH, FAST, NAMES, NEIGHBOURS, in_load, named
from detinfer.check.load import Load
from detinfer.check.mode_result import ModeResult
from detinfer.check.prompt_result import PromptResult
from detinfer.check.result import CheckResult
from detinfer.check.shrink import Shrinker
from detinfer.check.subject import Subject
from detinfer.check.target import Target, sampling
from detinfer.errors import ConfigError, DetinferError, RequestError

Mode = Literal["deterministic", "fast"]


@dataclass(frozen=True)
class Progress:
    """How far a check is, after each load.

    Attributes:
        runs: answers compared in this mode so far, of ``total``.
        unique_digests: most distinct digests of any one prompt.
        divergent_runs: runs that differ, in their digest or elsewhere.
        seconds: since the mode began.
        noun: what a target is called.
    """

    mode: Mode
    loads: int
    runs: int
    total: int
    unique_digests: int
    divergent_runs: int
    seconds: float
    noun: str = "prompt"


class Check:
    """Every target ``runs`` times, or its share, in each mode; each time under a new load.

    Args:
        subject: what answers.
        targets: the requests under test.
        runs: answers of each target that are compared with the one it gets alone.
        modes: the first is the one the result is judged on.
        seed: draws the loads; None draws one.
        fast_neighbours: fast requests beside each load's own rows.
        families: names of what loads may change; ``families.NAMES`` has them all.

    Raises:
        ConfigError: if nothing would be compared, or a mode cannot run.
        RequestError: if a target cannot be compared, or (while it runs) not be served.
        DetinferError: (while it runs) if a target got no answer.
    """

    noun = "prompt"  # what a target is called

    def __init__(
        self,
        subject: Subject,
        targets: Sequence[Target],
        *,
        runs: int = 1000,
        modes: Sequence[Mode] = ("deterministic",),
        seed: int | None = None,
        fast_neighbours: int = 0,
        families: Iterable[str] = NAMES,
    ) -> None:
        if runs < 1 or not targets or not modes:
            raise ConfigError(
                f"check: got {runs} runs of {len(targets)} {self.noun}s in {len(modes)} modes, "
                "expected at least one of each: nothing would be compared"
            )
        for number, target in enumerate(targets, start=1):
            self._check_target(number, target)
        if fast_neighbours and not subject.bounds.allow_fast:
            raise ConfigError(
                f"fast_neighbours: got {fast_neighbours}, but {subject.source} runs without the "
                "fast mode"
            )
        self.families = named(families)
        if fast_neighbours and not {BATCH, NEIGHBOURS, FAST} <= {*self.families}:
            raise ConfigError(
                f"fast_neighbours: got {fast_neighbours} without the families batch, neighbours "
                "and mode, which they are of"
            )
        if "fast" in modes and not subject.bounds.allow_fast:
            raise ConfigError(f"mode: got fast, but {subject.source} runs without the fast mode")
        self.targets = tuple(targets)
        self.runs = runs
        self.modes = tuple(modes)
        self.seed = secrets.randbits(32) if seed is None else seed
        self.fast_neighbours = fast_neighbours
        self.subject = subject
        self._by_mode: dict[str, ModeResult] = {}

    @property
    def max_rows(self) -> int:
        """Most requests in a load."""
        return self.subject.bounds.max_rows

    @property
    def total(self) -> int:
        """Answers to compare in each mode."""
        return sum(target.runs_of(self.runs) for target in self.targets)

    def run(self) -> CheckResult:
        """Run to the end."""
        for _ in self.progress():
            pass
        return self.result()

    def progress(self) -> Iterator[Progress]:
        """Run load by load; ``result()`` is there when it is exhausted."""
        self._by_mode = {}
        for mode in self.modes:
            yield from self._run_mode(mode)

    def result(self) -> CheckResult:
        """Return what was found.

        Raises:
            DetinferError: not every answer that was asked for has been compared.
        """
        for mode in self.modes:
            got = self._by_mode[mode].runs if mode in self._by_mode else 0
            if got != self.total:
                raise DetinferError(f"check: compared {got} of {self.total} {mode} answers")
        return self.found()

    def found(self) -> CheckResult:
        """Return what was found so far, which may be less than was asked for."""
        return CheckResult(
            self.subject.source,
            self.subject.fingerprint,
            self.seed,
            dict(self._by_mode),
            self.noun,
            families=self.families,
            parts=dict(self.subject.parts),
            troubles=dict(getattr(self.subject, "troubles", {})),
        )

    def shrunk(self, result: CheckResult) -> CheckResult:
        """Return what was found, the load of the first divergence made as small as it can be."""
        first = result.first_divergence
        if first is None:
            return result
        _, alone = self.single(self.modes[0], first.prompt)
        return dataclasses.replace(result, shrunk=Shrinker(self.subject, first, alone).run())

    def _run_mode(self, mode: Mode) -> Iterator[Progress]:
        start = time.perf_counter()
        found = ModeResult(mode, [self._alone(mode, i) for i in range(len(self.targets))])
        self._by_mode[mode] = found
        before = self.subject.stats()
        for load in self._loads(mode):
            kinds = in_load(load, self.subject.bounds)
            for place, (index, answer) in self._play(load).items():
                found.prompts[index].add(answer, load, place, kinds)
            found.loads += 1
            found.seconds = time.perf_counter() - start
            yield Progress(
                mode=mode,
                loads=found.loads,
                runs=found.runs,
                total=self.total,
                unique_digests=found.unique_digests,
                divergent_runs=found.divergent_runs,
                seconds=found.seconds,
                noun=self.noun,
            )
        found.count(before, self.subject.stats())

    def _check_target(self, number: int, target: Target) -> None:
        params = sampling(target.params)
        if params.temperature > 0 and params.seed is None:
            raise RequestError(f"prompt {number}: sampled without a seed", "seed")

    def _loads(self, mode: Mode) -> Iterator[Load]:
        """Draw the loads that every target's runs are in."""
        return draw_loads(
            self.targets,
            self.runs,
            self.subject.bounds,
            self.seed,
            deterministic=mode == "deterministic",
            fast_neighbours=self.fast_neighbours,
            families=self.families,
        )

    def single(self, mode: Mode, index: int) -> tuple[Target, Load]:
        """Return a target as it is asked for in a mode, and it alone."""
        target = self.targets[index]
        params = dataclasses.replace(sampling(target.params), deterministic=mode == "deterministic")
        target = dataclasses.replace(target, params=params)
        return target, Load.alone(index, target)

    def _play(self, load: Load) -> dict[int, tuple[int, Answer]]:
        """Target and answer of every run in the load, by its place there."""
        answers = self.subject.play(load)
        runs = {place: row.target for place, row in enumerate(load.rows) if row.target is not None}
        if sorted(answers) != list(runs):
            raise DetinferError(
                f"load {load.number}: got answers of rows {sorted(answers)}, expected {list(runs)}"
            )
        return {place: (index, answers[place]) for place, index in runs.items()}

    def _alone(self, mode: Mode, index: int) -> PromptResult:
        target, load = self.single(mode, index)
        try:
            _, answer = self._play(load)[0]
        except RequestError as error:
            message = f"{self.noun} {index + 1} of {len(self.targets)}: {error}"
            raise RequestError(message, error.param, error.code) from None
        return PromptResult(mode, index, target, answer)
