"""How recursive models are drawn: accuracy by steps, and one board on its way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import chart

CELL, BOARD_GAP = 14, 26
CLUE, RIGHT, WRONG = "#202428", chart.COLOURS[0], chart.COLOURS[1]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)

Curve = Sequence[tuple[int, float]]


class Way(NamedTuple):
    """What one puzzle was after each step.

    Attributes:
        model: whose it is.
        width: cells in a row.
        boards: a character a cell; the puzzle first, then a board a step.
        answer: the only one.
    """

    model: str
    width: int
    boards: Sequence[str]
    answer: str


def picture(title: str, curves: Mapping[str, Curve], ways: Sequence[Way]) -> str:
    """Draw a curve for each model, and below them a row of boards for each way."""
    drawn = chart.text(chart.GAP, 22, title, bold=True)
    drawn += _curves(curves, 70, 40)
    top = 40 + chart.HEIGHT + 70
    right = 70 + chart.WIDTH + 130
    for way in ways:
        row, wide, high = _way(way, chart.GAP, top)
        drawn, top, right = drawn + row, top + high, max(right, wide)
    return chart.page(title, right, top, drawn)


def _curves(curves: Mapping[str, Curve], left: float, top: float) -> str:
    bottom, drawn = top + chart.HEIGHT, ""
    last = max(steps for curve in curves.values() for steps, _ in curve)

    def at(steps: int, share: float) -> tuple[float, float]:
        along = math.log(steps) / math.log(max(2, last))
        return left + chart.WIDTH * along, bottom - chart.HEIGHT * share

    for share in SHARES:
        _, y = at(1, share)
        drawn += chart.line(left, y, left + chart.WIDTH, y, "#e4e7ea")
        drawn += chart.text(left - 6, y + 4, f"{share:.0%}", "end")
    for steps in sorted({steps for curve in curves.values() for steps, _ in curve}):
        drawn += chart.text(at(steps, 0)[0], bottom + 16, f"{steps}", "middle")
    drawn += chart.text(left + chart.WIDTH / 2, bottom + 34, "supervision steps", "middle")
    for number, (name, curve) in enumerate(curves.items()):
        colour, y = chart.COLOURS[number % len(chart.COLOURS)], top + 10 + number * chart.ROW
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve))
        drawn += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n'
        drawn += chart.line(left + chart.WIDTH + 12, y, left + chart.WIDTH + 32, y, colour)
        drawn += chart.text(left + chart.WIDTH + 37, y + 4, name)
    return drawn


def _way(way: Way, left: float, top: float) -> tuple[str, float, float]:
    """Return what is drawn, its right end, and its height."""
    side, drawn = way.width * CELL, ""
    puzzle = way.boards[0]
    for step, board in enumerate(way.boards):
        x = left + step * (side + BOARD_GAP)
        name = f"step {step}" if step else way.model
        drawn += chart.text(x, top, name, bold=step == 0)
        drawn += (
            f'<rect x="{x}" y="{top + 8}" width="{side}" height="{side}" fill="none" '
            'stroke="#a9b1b9"/>\n'
        )
        for cell, letter in enumerate(board):
            if letter == ".":
                continue
            colour = RIGHT if letter == way.answer[cell] else WRONG
            colour = CLUE if letter == puzzle[cell] else colour
            at_x, at_y = x + cell % way.width * CELL, top + 8 + cell // way.width * CELL
            drawn += _cell(at_x, at_y, letter, colour)
    right = left + len(way.boards) * (side + BOARD_GAP)
    return drawn, right, side + 44


def _cell(x: float, y: float, letter: str, colour: str) -> str:
    if letter == "#":
        return f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="#c9ced3"/>\n'
    return (
        f'<text x="{x + CELL / 2}" y="{y + CELL - 3}" text-anchor="middle" fill="{colour}">'
        f"{letter}</text>\n"
    )
