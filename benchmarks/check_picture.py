"""README's picture: the runs of one prompt in both modes, out of a check's HTML report.

detinfer check --mode both --runs 100 --prompt TEXT --report report.html
python -m benchmarks.check_picture report.html docs/check.svg
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TITLES = (
    "detinfer: every run of one prompt",
    "deterministic: false (PyTorch's kernels), same loads",
)
SQUARES = re.compile(
    r'<svg viewBox="0 0 (\d+) (\d+)"[^>]*aria-label="\d+ runs,[^>]*>(.*?)</svg>', re.DOTALL
)
TEXT = 'font-family="system-ui, sans-serif" font-size="13" fill="#808890"'


def draw(report: str) -> str:
    """Return the picture, as SVG, out of a report's HTML.

    Raises:
        ValueError: it is not of one prompt in two modes.
    """
    found = SQUARES.findall(report)
    if len(found) != len(TITLES):
        raise ValueError(f"found the runs of {len(found)}, expected one prompt in two modes")
    drawn, top = "", 0
    for title, (_, height, squares) in zip(TITLES, found, strict=True):
        drawn += f'<text x="0" y="{top + 14}" {TEXT}>{title}</text>\n'
        drawn += f'<g transform="translate(0 {top + 22})">{squares}</g>\n'
        top += int(height) + 40
    width = found[0][0]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" role="img" '
        'aria-label="Every square is a run, every colour a distinct answer: one colour in '
        f'deterministic mode, many in fast mode">\n{drawn}</svg>\n'
    )


def main() -> None:
    report, picture = map(Path, sys.argv[1:])
    picture.write_text(draw(report.read_text()))


if __name__ == "__main__":
    main()
