"""``detinfer solve``: puzzles from the command line, a file or a pipe, and their answers."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from detinfer.cli.board import Screen
from detinfer.errors import ConfigError, RequestError
from detinfer.recursive.params import SolveParams
from detinfer.recursive.puzzle import parse_board
from detinfer.recursive.result import Solution, TraceStep
from detinfer.recursive.solver import Solver

MAX_BYTES = 1 << 20  # of a file


def solve(solver: Solver, source: str, params: SolveParams, *, as_json: bool) -> int:
    """Solve what ``source`` names and print the answers.

    Args:
        solver: what to solve with.
        source: a board, a file of boards, or ``-`` for standard input.
        params: for each of them.
        as_json: print all that is known of the answers.

    Returns:
        0 if every puzzle was solved, else 1.

    Raises:
        DetinferError: there is no such file, or a board that cannot be solved as asked.
    """
    boards = read_boards(solver, source)
    if as_json:
        solutions = solver.solve(boards, params)
        print(_json(solver, boards, solutions), flush=True)
    elif sys.stdout.isatty() and len(boards) == 1:
        solutions = [_watched(solver, boards[0], params)]
    else:
        solutions = solver.solve(boards, params)
        for solution in solutions:
            for step in solution.trace:
                print(step_line(step))
            print(f"{solution.grid}  {summary(solution)}", flush=True)
    return 0 if all(one.status == "solved" for one in solutions) else 1


def read_boards(solver: Solver, source: str) -> list[str]:
    """Return the boards of a file, of standard input, or the one that was given as it is.

    Boards are one a line, or over several lines and then between empty ones.

    Raises:
        ConfigError: the file cannot be read, or has no board.
        RequestError: what was given is neither file nor board.
    """
    if source != "-" and not os.path.isfile(source):
        try:
            _check(solver, source)
        except RequestError as error:
            said = f"PUZZLE: got {_short(source)}, no file of that name, and {error}"
            raise RequestError(said) from None
        return [source]
    try:
        with sys.stdin.buffer if source == "-" else Path(source).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"PUZZLE: {source} cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"PUZZLE: {source} has more than {MAX_BYTES >> 20} MiB")
    boards = [board for part in _parts(text) for board in _boards(solver, part)]
    if not boards:
        raise ConfigError(f"PUZZLE: {source} has no board in it")
    return boards


def _check(solver: Solver, board: str) -> None:
    parse_board(solver.choose(board).task, board)


def _parts(text: str) -> list[str]:
    """Return what stands between empty lines."""
    lines = [line if line.strip() else "" for line in text.splitlines()]
    return [part.strip("\n") for part in "\n".join(lines).split("\n\n") if part.strip("\n")]


def _boards(solver: Solver, part: str) -> list[str]:
    """Return one board over several lines, or a board a line."""
    try:
        _check(solver, part)
    except RequestError:
        return part.splitlines()
    return [part]


def _watched(solver: Solver, board: str, params: SolveParams) -> Solution:
    """Solve one board before the eyes of whoever sits at the terminal."""
    task = solver.choose(board).task
    with Screen(task, parse_board(task, board), params.max_steps) as screen:
        begun, shown = time.perf_counter(), 0.0
        for told in solver.stream(board, params):
            before = time.perf_counter()
            if isinstance(told, Solution):
                seconds = before - begun - shown
                screen.end(told, f"{summary(told)}, {seconds * 1000:.0f} ms")
                return told
            if told.rollout == 0:
                screen.show(told)
            shown += time.perf_counter() - before
    raise AssertionError("a stream ends with its solution")


def step_line(step: TraceStep) -> str:
    """One step of a run, in words."""
    return (
        f"rollout {step.rollout}, step {step.step}: {step.grid}  {step.changed} changed, "
        f"{step.violations} wrong, q {step.q:.3f} ({step.q_hex}), chain {step.chain}"
    )


def summary(solution: Solution) -> str:
    """How a puzzle ended, in words."""
    words: str = solution.status
    if solution.halted_by is not None:
        steps = "1 step" if solution.steps == 1 else f"{solution.steps} steps"
        words += f" {'in' if solution.status == 'solved' else 'after'} {steps}"
    if solution.reason is not None:
        words += f": {solution.reason}"
    if solution.rollout:
        words += f", rollout {solution.rollout}"
    if solution.q is not None:
        words += f", q {solution.q:.3f} ({solution.q_hex})"
    return f"{words}, digest {solution.digest}"


def _json(solver: Solver, boards: list[str], solutions: list[Solution]) -> str:
    models = [solver.choose(board) for board in boards]
    answers = [
        {"model": model.name, "system_fingerprint": model.system_fingerprint, **asdict(solution)}
        for model, solution in zip(models, solutions, strict=True)
    ]
    return json.dumps(answers[0] if len(answers) == 1 else answers, indent=2)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}…"
