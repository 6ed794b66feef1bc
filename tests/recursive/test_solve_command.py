"""``detinfer solve``: what it reads, prints and returns."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from scripted_solvers import ScriptedModel, answer, puzzles

from detinfer import cli
from detinfer.cli import board as drawing
from detinfer.cli import solve as command
from detinfer.recursive import shipped, solver

FIRST, SECOND = puzzles("sudoku4", 2)
TASK, RIGHT = FIRST.task, answer(FIRST)
EMPTY = int(np.flatnonzero(FIRST.board == 0)[0])
WRONG = RIGHT.copy()
WRONG[EMPTY] = WRONG[EMPTY] % 4 + 1
SOLVED = TASK.render(RIGHT)


@pytest.fixture(autouse=True)
def model(monkeypatch, tmp_path):
    """One shipped model: it solves FIRST at its second step, SECOND never."""
    scripts = {
        FIRST.text: [(WRONG, -1.0), (RIGHT, 1.0)],
        SECOND.text: [(SECOND.board, -1.0)] * 16,
    }
    made = ScriptedModel("sudoku4", scripts)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "trm-sudoku4.safetensors").touch()
    (folder / "trm-sudoku4.json").write_text('{"task": "sudoku4"}')
    monkeypatch.setattr(shipped, "FOLDER", folder)
    monkeypatch.setattr(solver.RecursiveModel, "load", lambda source, **settings: made)


def run(capsys, *arguments):
    status = cli.main(["solve", *arguments])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    return status, out, err


def test_an_answer_is_one_plain_line(capsys):
    status, out, err = run(capsys, FIRST.text)
    assert (status, err) == (0, "")
    start, _, digest = out.partition(", digest ")
    assert start == f"{SOLVED}  solved in 2 steps, q 1.000 (3f800000)"
    assert len(digest.strip()) == 64
    assert run(capsys, FIRST.text.replace(".", "0"), "-m", "trm-sudoku4") == (0, out, "")


def test_what_is_not_solved_is_status_1_and_says_why(capsys):
    status, out, _ = run(capsys, SECOND.text)
    assert status == 1
    assert out.startswith(
        f"{SECOND.text}  unsolved after 16 steps: the model found no answer that is right, q -1.000"
    )
    status, out, _ = run(capsys, "11" + "." * 14)
    assert status == 1
    assert "  unsolvable: row 1 has 1 more than once, digest " in out


def test_the_trace_is_a_line_a_step(capsys):
    _, out, _ = run(capsys, FIRST.text, "--trace")
    first, second, last = out.splitlines()
    assert first.startswith(f"rollout 0, step 1: {TASK.render(WRONG)}  ")
    assert second.startswith(f"rollout 0, step 2: {SOLVED}  1 changed, 0 wrong, q 1.000 (3f800000)")
    assert second.rpartition(" ")[2] == last.rpartition(" ")[2]  # the last link is the digest


def test_json_has_all_there_is(capsys):
    status, out, _ = run(capsys, FIRST.text, "--json", "--trace")
    told = json.loads(out)
    assert status == 0
    assert (told["model"], told["system_fingerprint"]) == ("scripted-sudoku4", "detinfer-test")
    assert (told["status"], told["grid"], told["halted_by"]) == ("solved", SOLVED, "verified")
    assert [step["step"] for step in told["trace"]] == [1, 2]


def rows(text):
    return "\n".join(text[at : at + 4] for at in range(0, 16, 4))


@pytest.mark.parametrize(
    "text",
    [
        f"{FIRST.text}\n{SECOND.text}\n",
        f"\n{FIRST.text}\r\n\r\n{SECOND.text}",
        f"{rows(FIRST.text)}\n\n{rows(SECOND.text)}\n",
        f"{rows(FIRST.text)}\n \n\n{SECOND.text}\n",
    ],
)
def test_files_and_pipes_have_a_board_a_line_or_between_empty_lines(
    capsys, monkeypatch, tmp_path, text
):
    (tmp_path / "boards.txt").write_bytes(text.encode())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    for source in (str(tmp_path / "boards.txt"), "-"):
        status, out, _ = run(capsys, source)
        assert status == 1
        assert [line.split()[0] for line in out.splitlines()] == [SOLVED, SECOND.text]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n \n", "has no board in it"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        (FIRST.text.encode() + b"\n12\n", "puzzles[1]: grid: has 2 cells, expected 16"),
        (FIRST.text.encode() + b"\n" + b"." * 16, "puzzles[1]: grid: got no clue at all"),
        (b"1\n" * 600_000, "has more than 1 MiB"),
        ((FIRST.text.encode() + b"\n") * 4097, "puzzles: got 4097, expected at most 4096"),
    ],
    ids=["empty", "no text", "short", "no clue", "long", "many"],
)
def test_files_that_cannot_be_solved_cost_a_line(capsys, tmp_path, content, said):
    (tmp_path / "boards.txt").write_bytes(content)
    status, out, err = run(capsys, str(tmp_path / "boards.txt"))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("puzzles.txt", "PUZZLE: got 'puzzles.txt', no file of that name, and grid: "),
        ("1" * 9999, f"PUZZLE: got '{'1' * 40}'…, no file of that name, and grid: has 9999 cells"),
        ("1" + "." * 15, "grid: got a board with more than one solution (1 clues), expected one"),
    ],
    ids=["no file", "long", "too few clues"],
)
def test_what_is_no_board_costs_a_line(capsys, given, said):
    status, out, err = run(capsys, given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def styles(text):
    """The style of each cell's letter, in reading order."""
    found = {}
    for span in text.spans:
        for at in range(span.start, span.end):
            found[at] = str(span.style)
    return [found.get(at, "") for at, letter in enumerate(text.plain) if letter in ".1234"]


def test_a_board_is_drawn_with_its_boxes_and_colours():
    text = drawing.drawn(TASK, FIRST.board, FIRST.board, WRONG)
    letters = TASK.render(WRONG)
    lines = [f"{a} {b} │ {c} {d}" for a, b, c, d in (letters[at : at + 4] for at in (0, 4, 8, 12))]
    assert text.plain.splitlines() == [*lines[:2], "────┼────", *lines[2:]]
    wrong = TASK.wrong(FIRST.board, WRONG)
    for cell, style in enumerate(styles(text)):
        assert style.startswith("bold") == (FIRST.board[cell] > 0)
        colour = "red" if wrong[cell] else "default" if FIRST.board[cell] else "cyan"
        assert style.endswith(colour)
    assert wrong[EMPTY]
    nothing = drawing.drawn(TASK, FIRST.board, FIRST.board, FIRST.board)
    assert {*styles(nothing)} == {"bold default", "dim default"}


def test_a_terminal_sees_the_board_change(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(command.sys, "stdout", screen)
    monkeypatch.setattr(drawing, "PAUSE", 0.0)
    monkeypatch.setattr(
        drawing, "Console", lambda **options: Console(file=screen, force_terminal=True, width=200)
    )
    assert cli.main(["solve", FIRST.text]) == 0
    out = screen.getvalue()
    assert "step 1, q -1.000" in out
    assert out.index("step 1, q") < out.index("solved in 2 steps, q 1.000 (3f800000), digest ")
    assert " ms" in out
