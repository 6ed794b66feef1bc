"""The trainings of the models that come with the package."""

from __future__ import annotations

from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.training.recipe import Recipe

RECIPES = {
    "sudoku4": (RecursiveConfig("sudoku4", 5, 16, 48, "units", 6, 128), Recipe(400)),
    "sudoku6": (RecursiveConfig("sudoku6", 7, 36, 72, "units", 6, 192), Recipe(2000)),
    "sudoku9": (RecursiveConfig("sudoku9", 10, 81, 96, "units", 6, 256), Recipe(4000)),
    "maze": (
        RecursiveConfig("maze", 5, 144, 64, "units", 4, 192),
        Recipe(2400, hold=0.5, shown=0.0),
    ),
}
