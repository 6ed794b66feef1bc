"""Puzzles join and leave between any two steps, and none of it is in an answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from recursive_models import CONFIGS, weights_of
from scripted_solvers import ChaoticModel, ScriptedModel, answer, puzzles
from solver_loads import alone, run, together

from detinfer.errors import QueueFullError, RequestError
from detinfer.kernels.cpu.latent_noise import add_noise
from detinfer.recursive.lane import Lane
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.params import SolveParams
from detinfer.recursive.puzzle import Puzzle
from detinfer.recursive.solver_engine import SolverEngine
from detinfer.recursive.tasks import TASKS

SMALL, LARGE = puzzles("sudoku4", 8), puzzles("sudoku6", 4)


def cases(seed, small="small", large="large"):
    rng = np.random.default_rng(seed)
    return [
        (
            small if puzzle in SMALL else large,
            puzzle,
            SolveParams(
                max_steps=int(rng.integers(1, 9)),
                halt=str(rng.choice(["fixed", "q", "verified", "stable"])),
                halt_threshold=float(rng.choice([-0.2, 0.0, 0.3])),
                rollouts=int(rng.integers(1, 5)),
                noise=float(rng.choice([0.0, 0.1])),
                seed=int(rng.integers(3)),
                trace=bool(rng.integers(2)),
            ),
        )
        for puzzle in [*SMALL, *LARGE]
    ]


def models(**options):
    return {
        "small": ChaoticModel("sudoku4", **options),
        "large": ChaoticModel("sudoku6", **options),
    }


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_those_of_puzzles_alone(seed):
    assert together(models(), cases(seed), seed) == alone(models(), cases(seed))


def differing(made, seeds=range(4)):
    """Puzzles whose solution follows the load, in a few drawn ones."""
    return sum(
        one != other
        for seed in seeds
        for one, other in zip(
            together(made, cases(seed), seed), alone(made, cases(seed)), strict=True
        )
    )


def test_a_step_that_sees_the_batch_is_found():
    assert differing(models(defect=True))


def noise_by_slot(lane):
    for slot, one in enumerate(lane._runs):
        if one.is_noisy:
            key = (np.uint64(part) for part in (one.job.params.seed, slot + 1, one.step + 1))
            add_noise(lane._z[slot].reshape(-1), *key, np.float32(one.job.params.noise))


def noise_once_a_step(lane):
    lane.steps = getattr(lane, "steps", 0) + 1
    for one, z in zip(lane._runs, lane._z, strict=False):
        if one.is_noisy:
            key = (np.uint64(part) for part in (one.job.params.seed, one.rollout, lane.steps))
            add_noise(z.reshape(-1), *key, np.float32(one.job.params.noise))


def leave_without_states(lane):
    for slot in reversed(range(len(lane._runs))):
        if lane._runs[slot].ended:
            last = lane._runs.pop()
            if slot < len(lane._runs):
                lane._runs[slot] = last
                lane._boards[slot] = lane._boards[len(lane._runs)]


def admit_into_old_states(lane):
    while lane._waiting and len(lane._runs) < lane.slots:
        one = lane._waiting[0].begin()
        if one.job.all_begun:
            lane._waiting.popleft()
        lane._boards[len(lane._runs)] = one.board
        lane._runs.append(one)


@pytest.mark.parametrize(
    ("method", "defect"),
    [
        ("_add_noise", noise_by_slot),
        ("_add_noise", noise_once_a_step),
        ("_leave", leave_without_states),
        ("_admit", admit_into_old_states),
    ],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_a_defect_of_the_engine_is_found(monkeypatch, method, defect):
    monkeypatch.setattr(Lane, method, defect)
    assert differing(models())


def test_a_model_of_the_contract_keeps_its_bits_in_the_engine():
    config = CONFIGS["units"]
    made = {name: RecursiveModel(name, config, weights_of(config, seed)) for seed, name in
            enumerate(("first", "second"))}  # fmt: skip
    some = [
        ("first" if at % 2 else "second", puzzle, SolveParams(max_steps=3, rollouts=2, noise=0.3))
        for at, puzzle in enumerate(SMALL)
    ]
    expected = alone(made, some)
    assert together(made, some, 1) == expected
    assert len({one.digest for one in expected}) == len(some)


def test_models_take_turns():
    turns = []

    class Noted(ChaoticModel):
        def step(self, *arrays):
            turns.append(self.task.name)
            return super().step(*arrays)

    engine = SolverEngine({"small": Noted("sudoku4"), "large": Noted("sudoku6")})
    params = SolveParams(max_steps=3, halt="fixed")
    for at, puzzle in enumerate([*SMALL[:2], *LARGE[:2]]):
        engine.add(str(at), "small" if puzzle in SMALL else "large", puzzle, params)
    assert len(run(engine)) == 4
    assert turns == ["sudoku4", "sudoku6"] * 3


def test_steps_are_as_full_as_they_can_be():
    scripts = {puzzle.text: [(answer(puzzle), -1)] * at + [(answer(puzzle), 1)]
               for at, puzzle in enumerate(SMALL[:5])}  # fmt: skip
    model = ScriptedModel("sudoku4", scripts)
    engine = SolverEngine({"m": model}, max_batch=2)
    for at, puzzle in enumerate(SMALL[:5]):
        engine.add(str(at), "m", puzzle, SolveParams())
    assert {name: one.steps for name, one in run(engine).items()} == {
        str(at): at + 1 for at in range(5)
    }
    assert model.batches == [2, 2, 2, 2, 2, 2, 1, 1, 1]  # 15 steps of runs


def test_who_is_given_up_frees_slots_at_once():
    engine = SolverEngine(models(), max_batch=2)
    long, short = SolveParams(max_steps=1024, halt="fixed"), SolveParams(max_steps=2, halt="fixed")
    for at in range(4):
        engine.add(str(at), "small", SMALL[at], short if at == 3 else long)
    engine.step()
    assert (engine.running, engine.waiting) == (2, 2)
    assert engine.abort("0")
    assert engine.abort("2")
    assert (engine.running, engine.waiting) == (1, 1)
    assert not engine.abort("0")
    assert not engine.abort("never there")
    told = [update for _ in range(2) for update in engine.step()]
    assert [update.name for update in told] == ["3"]
    assert told[0].solution == alone(models(), [("small", SMALL[3], short)])[0]
    engine.add("0", "small", SMALL[0], short)  # its name is free
    assert engine.abort("1")
    assert [*run(engine)] == ["0"]


def test_what_cannot_be_taken_in_is_refused():
    engine = SolverEngine(models(), max_waiting=2)
    with pytest.raises(RequestError, match="model: got 'huge', expected one of small, large"):
        engine.add("a", "huge", SMALL[0], SolveParams())
    with pytest.raises(RequestError, match="grid: got a board of sudoku4, expected sudoku6 for la"):
        engine.add("a", "large", SMALL[0], SolveParams())
    engine.add("a", "small", SMALL[0], SolveParams())
    with pytest.raises(ValueError, match="a puzzle called 'a' has not ended"):
        engine.add("a", "small", SMALL[1], SolveParams())
    engine.add("b", "small", replace(SMALL[1], unsolvable="so it is"), SolveParams())
    with pytest.raises(QueueFullError, match="2 puzzles are being solved"):
        engine.add("c", "small", SMALL[2], SolveParams())
    assert [*run(engine)] == ["b", "a"]


def test_a_board_without_a_solution_is_not_run():
    model = ScriptedModel("sudoku4", {})
    engine = SolverEngine({"m": model})
    puzzle = Puzzle(TASKS["sudoku4"], SMALL[0].board, "row 1 has 1 more than once")
    for name in ("a", "b"):
        engine.add(name, "m", puzzle, SolveParams())
    assert engine.abort("b")
    [solution] = run(engine).values()
    assert (solution.status, solution.steps, solution.halted_by) == ("unsolvable", 0, None)
    assert solution.reason == "row 1 has 1 more than once"
    assert (solution.grid, solution.q, solution.q_hex) == (puzzle.text, None, "")
    assert len(solution.digest) == 64
    assert model.batches == []


def test_the_digest_written_out():
    [(_, puzzle, _), *_] = some = [("m", SMALL[0], SolveParams(max_steps=2, halt="fixed"))]
    grids = [np.full(16, value, np.int8) for value in (1, 2)]
    model = ScriptedModel("sudoku4", {puzzle.text: [(grids[0], -1.5), (grids[1], 0.25)]})
    request = {
        "format": "detinfer-solve-1",
        "model": model.parts,
        "task": "sudoku4",
        "board": puzzle.text,
        "params": {"max_steps": 2, "halt": "fixed", "rollouts": 1},
    }
    text = json.dumps(request, sort_keys=True, separators=(",", ":"))
    link = hashlib.sha256(text.encode()).digest()
    for step, (grid, q) in enumerate(zip(grids, (-1.5, 0.25), strict=True), 1):
        # A scripted model's y counts steps, its z stays 0.
        state = hashlib.sha256(np.array([step, 0], "<f4").tobytes()).digest()
        parts = (np.uint32(step).tobytes(), grid.tobytes(), np.float32(q).tobytes(), state)
        link = hashlib.sha256(link + b"".join(parts)).digest()
    assert alone({"m": model}, some)[0].digest == link.hex()


def test_a_bit_of_the_state_is_in_the_digest_and_in_nothing_else():
    class Flipped(ChaoticModel):
        def step(self, boards, y, z):
            out = super().step(boards, y, z)
            z.view(np.uint32)[:, -1, -1] ^= 1
            return out

    some = [("small", SMALL[0], SolveParams(max_steps=1))]
    [one], [other] = alone(models(), some), alone({"small": Flipped("sudoku4")}, some)
    assert one.digest != other.digest
    assert replace(one, digest="") == replace(other, digest="")


def test_the_digest_is_of_the_request_too():
    made = models()
    base = ("small", SMALL[0], SolveParams(max_steps=2, halt="fixed", rollouts=2, noise=0.1))

    def digest(model="small", puzzle=SMALL[0], **params):
        return alone(made, [(model, puzzle, replace(base[2], **params))])[0].digest

    others = [{"puzzle": SMALL[1]}, {"seed": 1}, {"noise": 0.2}, {"rollouts": 3}, {"halt": "q"}]
    assert len({digest(**change) for change in [{}, *others]}) == 6
    assert digest(trace=True) == digest()
    before = digest()
    made["small"].parts = {**made["small"].parts, "kernels": "torch-2.13"}
    assert digest() != before
