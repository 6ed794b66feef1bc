"""Kinds of puzzles: how one is written, what its rules are, where new ones come from."""

from __future__ import annotations

from detinfer.recursive.tasks.maze import Maze
from detinfer.recursive.tasks.sudoku import Sudoku
from detinfer.recursive.tasks.symmetry import Boards
from detinfer.recursive.tasks.task import Puzzles, Task

__all__ = ["TASKS", "Boards", "Puzzles", "Task"]

TASKS: dict[str, Task] = {
    task.name: task for task in (Sudoku(2, 2), Sudoku(2, 3), Sudoku(3, 3), Maze(12, 15))
}
