"""Pictures of a check, as SVG: every run a square, where runs part, how near candidates were."""

from __future__ import annotations

import itertools
import math

from detinfer.check.answer import Answer
from detinfer.check.prompt_result import PromptResult

_COLUMNS, _SQUARE, _PITCH = 50, 10, 12
_MOST_SQUARES = 5000
_WIDTH, _TALL = 600, 60
_LINE, _MOST_ROWS, _MOST_COLUMNS = 4, 60, 300
# What a run is at a position: as alone, other log-probabilities, another token.
_SAME, _NEAR, _OTHER = range(3)
_HEAT = ("var(--same)", "var(--near)", "var(--other)")


def color(number: int) -> str:
    """Return teal for the answer a prompt gets alone; any other hue, far from the last, else."""
    if number == 0:
        return "hsl(172 60% 42%)"
    around = number * 0.6180339887 % 1
    return f"hsl({(205 + 290 * around) % 360:.0f} 75% 58%)"


def squares(prompt: PromptResult) -> str:
    """Draw every run as a square, in order; of very many runs each square shows several."""
    each = -(-len(prompt.runs) // _MOST_SQUARES)
    # A run that differs must not vanish among those that agree.
    shown = [max(prompt.runs[i : i + each]) for i in range(0, len(prompt.runs), each)]
    paths: dict[int, list[str]] = {}
    for place, number in enumerate(shown):
        x, y = place % _COLUMNS * _PITCH, place // _COLUMNS * _PITCH
        square = f"M{x} {y}h{_SQUARE}v{_SQUARE}h-{_SQUARE}z"
        paths.setdefault(number, []).append(square)
    height = -(-len(shown) // _COLUMNS) * _PITCH
    summary = (
        f"{len(prompt.runs)} runs, {len(prompt.answers)} distinct answers, "
        f"{prompt.divergent_runs} runs unlike the answer alone"
    )
    drawn = "".join(
        f'<path fill="{color(number)}" d="{"".join(squares)}"/>'
        for number, squares in paths.items()
    )
    caption = "Every square is a run" if each == 1 else f"Every square is {each} runs"
    return (
        f'<svg viewBox="0 0 {_COLUMNS * _PITCH} {height}" role="img" aria-label="{summary}">'
        f"{drawn}</svg>\n<p class=soft>{caption}, every colour a distinct answer. {summary}.</p>\n"
    )


def heat_map(prompt: PromptResult) -> str:
    """Draw runs from top to bottom, positions from left to right: where each leaves the one alone.

    Nothing where every run agrees.
    """
    if not prompt.divergent_runs:
        return ""
    expected = prompt.expected
    columns = max(len(answer.token_ids) for answer in prompt.answers)
    states = [_states(expected, answer) for answer in prompt.answers]
    each = -(-len(prompt.runs) // _MOST_ROWS)
    rows = [max(prompt.runs[i : i + each]) for i in range(0, len(prompt.runs), each)]
    wide = -(-columns // _MOST_COLUMNS)
    pitch, step = _LINE, _WIDTH / -(-columns // wide)
    drawn: list[list[str]] = [[], [], []]
    for y, number in enumerate(rows):
        line = [max(states[number][x : x + wide], default=_OTHER) for x in range(0, columns, wide)]
        x = 0
        for state, run in itertools.groupby(line):
            count = len(list(run))
            across = f"{count * step:.4g}"
            path = f"M{x * step:.4g} {y * pitch:.4g}h{across}v{pitch:.4g}h-{across}z"
            drawn[state].append(path)
            x += count
    paths = "".join(
        f'<path class=heat fill="{fill}" d="{"".join(some)}"/>'
        for fill, some in zip(_HEAT, drawn, strict=True)
        if some
    )
    unit = expected.unit
    rows_are = "a run" if each == 1 else f"{each} runs, the one that differs most"
    legend = "".join(
        f'<span class="swatch" style="background:{fill}"></span> {what} &nbsp; '
        for fill, what in zip(
            _HEAT, ("as alone", "other log-probabilities", f"another {unit}"), strict=True
        )
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {math.ceil(len(rows) * pitch)}" role="img" '
        f'aria-label="where runs part from the answer alone">{paths}</svg>\n'
        f"<p class=soft>Where runs part: every row is {rows_are}, from left to right the answer's "
        f"{columns} {unit}s. {legend}</p>\n"
    )


def margin_chart(prompt: PromptResult) -> str:
    """Draw how far ahead the likeliest token was, from left to right; nothing if nobody knows."""
    if not prompt.margins:
        return ""
    step = _WIDTH / len(prompt.margins)
    bars, least = [], min(prompt.margins)
    for at, margin in enumerate(prompt.margins):
        tall = max(1.0, _tall(margin))
        gap = min(1.0, step / 5)
        bars.append(f"M{at * step:.5g} {_TALL}v-{tall:.4g}h{step - gap:.4g}v{tall:.4g}z")
    lines = "".join(
        f'<path class=rule fill=none d="M0 {_TALL - _tall(at):.4g}h{_WIDTH}"/>'
        for at in (1e-6, 1e-3, 1)
    )
    place = prompt.margins.index(least) + 1
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_TALL}" role="img" aria-label="margins along the answer">'
        f'{lines}<path class=bar fill="var(--bar)" d="{"".join(bars)}"/></svg>\n'
        "<p class=soft>How far ahead the likeliest token is of the second, along the answer (nats, "
        f"logarithmic; lines at 10⁻⁶, 10⁻³ and 1). Least at token {place}: {least:.6g}.</p>\n"
    )


def _tall(margin: float) -> float:
    """Return the height of a margin, from 1e-7 to 30."""
    share = math.log10(min(max(margin, 1e-7), 30) / 1e-7) / math.log10(30 / 1e-7)
    return share * (_TALL - 4)


def _states(expected: Answer, answer: Answer) -> list[int]:
    """Return what an answer is at each position of it."""
    parted = expected.first_difference(answer)
    states = []
    for at in range(max(len(expected.token_ids), len(answer.token_ids))):
        if parted is not None and at >= parted:
            states.append(_OTHER)
        elif _logprob(expected, at) != _logprob(answer, at):
            states.append(_NEAR)
        else:
            states.append(_SAME)
    if answer != expected and parted is None and _NEAR not in states:
        return [_NEAR] * len(states)  # logits differ, and nobody knows where
    return states


def _logprob(answer: Answer, at: int) -> object:
    told = answer.logprobs or ()
    return told[at] if at < len(told) else None
