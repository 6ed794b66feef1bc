"""Plain SVG: bars and lines, in panels side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT, GAP = 320, 220, 30  # of a line panel, and between panels
ROW, LABEL, ROOM = 20, 125, 62  # of a bar: its height, its name's width, its value's
COLOURS = ("#3b6fb6", "#c8553d", "#4f9d69", "#8a63a8", "#b8862b", "#3a9aa5", "#a05070", "#707880")
OURS, THEIRS = COLOURS[0], "#a9b1b9"


class Bar(NamedTuple):
    """A value, the least and most that it was made of, and whether it stands out."""

    label: str
    value: float
    low: float
    high: float
    ours: bool


def text(x: float, y: float, words: str, anchor: str = "start", bold: bool = False) -> str:
    """Return words at a place."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(words)}</text>\n'


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    """Return a line between two places."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>\n'


def page(title: str, width: float, height: float, drawn: str) -> str:
    """Return a whole file of what is drawn."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'role="img" aria-label={quoteattr(title)} font-family="system-ui, sans-serif" '
        'font-size="12" fill="#606870">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{drawn}</svg>\n'
    )


def bars(title: str, panels: Mapping[str, Sequence[Bar]], columns: int = 2) -> str:
    """Draw a panel of horizontal bars for each name, longest at its panel's width."""
    length, drawn, top = WIDTH - ROOM, text(GAP, 22, title, bold=True), 30.0
    names = list(panels)
    for first in range(0, len(names), columns):
        beside = names[first : first + columns]
        for column, name in enumerate(beside):
            left = GAP + column * (LABEL + WIDTH + GAP)
            drawn += text(left, top + 16, name, bold=True)
            most = max((bar.high for bar in panels[name]), default=1.0)
            for row, bar in enumerate(panels[name]):
                y, x = top + 24 + row * ROW, left + LABEL
                ends = [x + length * value / most for value in (bar.value, bar.low, bar.high)]
                colour = OURS if bar.ours else THEIRS
                drawn += text(x - 6, y + 13, bar.label, "end", bar.ours)
                drawn += (
                    f'<rect x="{x}" y="{y + 3:.1f}" width="{ends[0] - x:.1f}" height="{ROW - 6}" '
                    f'fill="{colour}"/>\n'
                )
                drawn += line(ends[1], y + ROW / 2, ends[2], y + ROW / 2, "#202428")
                drawn += text(ends[2] + 5, y + 13, f"{bar.value:,.0f}")
        top += 24 + ROW * max(len(panels[name]) for name in beside) + GAP / 2
    return page(title, GAP + columns * (LABEL + WIDTH + GAP), top, drawn)


Series = Mapping[str, Sequence[tuple[float, float]]]


def lines(title: str, panels: Mapping[str, Series], x_name: str) -> str:
    """Draw a panel of lines for each name, on logarithmic axes that all panels share."""
    series = [points for panel in panels.values() for points in panel.values()]
    xs = sorted({x for points in series for x, _ in points})
    ys = [y for points in series for _, y in points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)))
    high = max(high, 10 * low)
    ticks = [low * 10**i * m for i in range(round(math.log10(high / low))) for m in (1, 2, 5)]

    def along(value: float, start: float, end: float, size: float) -> float:
        return size * math.log(value / start) / math.log(end / start) if end > start else size / 2

    drawn, legend = text(GAP, 22, title, bold=True), {}
    for number, (name, panel) in enumerate(panels.items()):
        left, bottom = 70 + number * (WIDTH + GAP + 30), 60 + HEIGHT
        drawn += text(left, 50, name, bold=True)
        for tick in [*ticks, high]:
            y = bottom - along(tick, low, high, HEIGHT)
            drawn += line(left, y, left + WIDTH, y, "#e4e7ea")
            drawn += text(left - 6, y + 4, f"{tick:,g}", "end")
        for x in xs:
            drawn += text(left + along(x, xs[0], xs[-1], WIDTH), bottom + 16, f"{x:g}", "middle")
        drawn += text(left + WIDTH / 2, bottom + 34, x_name, "middle")
        for label, points in panel.items():
            colour = legend.setdefault(label, COLOURS[len(legend) % len(COLOURS)])
            at = [
                (left + along(x, xs[0], xs[-1], WIDTH), bottom - along(y, low, high, HEIGHT))
                for x, y in points
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            drawn += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n'
            for x, y in at:
                drawn += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>\n'
    width = 70 + len(panels) * (WIDTH + GAP + 30) + 100
    for row, (label, colour) in enumerate(legend.items()):
        y = 70 + row * ROW
        drawn += line(width - 125, y, width - 105, y, colour) + text(width - 100, y + 4, label)
    return page(title, width, 60 + HEIGHT + 50, drawn)
