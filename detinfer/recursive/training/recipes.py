"""The trainings of the models that come with the package: a model's shape, and its stages."""

from __future__ import annotations

from detinfer.recursive.config import RecursiveConfig
from detinfer.recursive.training.recipe import Recipe

# Shallow steps teach as well as the model's own, in half the time. The second stage is for
# hard boards, which stay twice as long; its rates begin at half.
SUDOKU9 = (
    Recipe(4000, cycles=2),
    Recipe(3000, cycles=2, rate=7.5e-4, matrix_rate=5e-3, hold=0.0, most=16),
)

RECIPES: dict[str, tuple[RecursiveConfig, *tuple[Recipe, ...]]] = {
    "sudoku4": (RecursiveConfig("sudoku4", 5, 16, 48, "units", 6, 128), Recipe(400)),
    "sudoku6": (RecursiveConfig("sudoku6", 7, 36, 72, "units", 6, 192), Recipe(2000)),
    "sudoku9": (RecursiveConfig("sudoku9", 10, 81, 96, "units", 6, 256, cycles=6), *SUDOKU9),
    "maze": (
        RecursiveConfig("maze", 5, 144, 64, "units", 4, 192),
        Recipe(2600, hold=0.4, rate=1e-3, matrix_rate=6e-3),
        Recipe(1400, hold=0.0, rate=5e-4, matrix_rate=3e-3, most=16, shown=0.0),
    ),
}
