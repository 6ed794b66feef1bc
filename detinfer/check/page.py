"""The HTML report: one self-contained page in which every run is a square, coloured by answer."""

from __future__ import annotations

from collections import Counter
from html import escape

from detinfer import __version__
from detinfer.check.answer import Answer, Divergence
from detinfer.check.mode_result import ModeResult
from detinfer.check.pictures import color, heat_map, margin_chart, squares
from detinfer.check.prompt_result import PromptResult
from detinfer.check.result import CheckResult
from detinfer.check.words import shrunk_lines

_MOST_ANSWERS = 8  # listed below a picture; the picture shows all

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --paper: #ffffff;
  --line: #d9dee4; --card: #f6f8fa; --good: #0f766e; --bad: #b42318;
  --same: #bfe3dd; --near: #f2c14e; --other: #d1495b; --bar: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4b0; --paper: #14171b;
  --line: #30363d; --card: #1c2126; --good: #2dd4bf; --bad: #ff8a7a;
  --same: #1f4f4a; --near: #c8962e; --other: #e5687a; --bar: #2dd4bf; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 46rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; overflow-wrap: anywhere; }
.verdict { font-weight: 600; margin: .25rem 0 1rem; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.25rem 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
svg { display: block; width: 100%; height: auto; margin: .5rem 0; }
code { font: .85em ui-monospace, monospace; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; }
.rule { stroke: var(--line); } .bar { fill: var(--bar); }
.count { display: inline-block; height: .6em; border-radius: 2px; background: var(--bar);
  min-width: 2px; margin-right: .4em; }
.count.bad { background: var(--bad); }
pre { font: .8rem/1.5 ui-monospace, monospace; background: var(--card); padding: .75rem;
  border: 1px solid var(--line); border-radius: 8px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
figure h3 { margin-top: 0; } td code { white-space: nowrap; } .answer code { white-space: normal; }
.answer { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def render_page(result: CheckResult) -> str:
    """Return the whole page; nothing in it is loaded from elsewhere."""
    good = result.reproducible
    verdict = (
        f"Reproducible: {result.runs} runs under {result.loads} loads, one answer a {result.noun}"
        if good
        else f"Not reproducible: up to {result.judged.unique_answers} distinct answers to one "
        f"{result.noun} in {result.runs} runs"
    )
    facts = {
        "Checked": result.source,
        "System fingerprint": result.fingerprint,
        "Seed of the loads": str(result.seed),
        "Time": f"{result.seconds:.0f} s",
        "detinfer": __version__,
    }
    rows = "".join(
        f"<tr><th scope=row>{name}</th><td><code>{escape(value)}</code></td></tr>"
        for name, value in facts.items()
    )
    modes = "".join(_mode(mode, result) for mode in result.by_mode.values())
    told = _by_mode(result) + _families(result) + _shrunk(result)
    told += "".join(f"<p>{escape(line[0].upper() + line[1:])}.</p>\n" for line in result.told())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>detinfer check: {'reproducible' if good else 'not reproducible'}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>detinfer check</h1>\n"
        f'<p class="verdict {"good" if good else "bad"}">{verdict}</p>\n'
        f'<div class="scroll"><table>{rows}</table></div>\n{told}{modes}</body>\n</html>\n'
    )


def _by_mode(result: CheckResult) -> str:
    """Return how many distinct answers each prompt has, mode beside mode."""
    modes = list(result.by_mode.values())
    most = max(mode.unique_answers for mode in modes)
    heads = "".join(f"<th scope=col>{mode.mode}</th>" for mode in modes)
    rows = []
    for prompts in zip(*(mode.prompts for mode in modes), strict=True):
        cells = "".join(
            f'<td><span class="count{" bad" if prompt.divergent_runs else ""}" '
            f'style="width:{7 * len(prompt.answers) / most:.2f}rem"></span>{len(prompt.answers)}'
            "</td>"
            for prompt in prompts
        )
        rows.append(f"<tr><td>{escape(prompts[0].target.label)}</td>{cells}</tr>")
    return (
        "<h2>Unique answers by mode</h2>\n"
        f'<div class="scroll"><table><thead><tr><th>{result.noun.capitalize()}</th>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _families(result: CheckResult) -> str:
    """Return what the loads changed, and what came of it."""
    modes = list(result.by_mode.values())
    counts = [mode.by_family(result.families) for mode in modes]
    heads = "".join(
        f"<th scope=col class=number>Runs{beside}</th><th scope=col class=number>Unique digests"
        f"{beside}</th>"
        for beside in (f", {mode.mode}" if len(modes) > 1 else "" for mode in modes)
    )
    rows = []
    for family in result.families:
        found = [one.get(family) for one in counts]
        if any(found):
            cells = "".join(
                "<td class=number>0</td><td class=number>-</td>"
                if one is None
                else f"<td class=number>{one.runs:,}</td>"
                f'<td class="number {"bad" if one.divergent_runs else "good"}">{one.unique_digests}'
                "</td>"
                for one in found
            )
            name = f"<td>{family.words}</td><td><code>{family.name}</code></td>"
            rows.append(f"<tr>{name}{cells}</tr>")
    return (
        f"<h2>What the loads changed</h2>\n"
        f'<div class="scroll"><table><thead><tr><th>Family</th><th>Name</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _shrunk(result: CheckResult) -> str:
    """Return the load of the first difference made small, and where the answers part."""
    if result.shrunk is None:
        return ""
    lines = "\n".join(shrunk_lines(result.shrunk))
    return f"<h2>What it takes to differ</h2>\n<pre>{escape(lines)}</pre>\n"


def _mode(mode: ModeResult, result: CheckResult) -> str:
    noun = result.noun.capitalize()
    note = "" if mode is result.judged else ' <span class="soft">for comparison</span>'
    heads = "".join(
        f"<th scope=col{' class=number' if name != noun else ''}>{name}</th>"
        for name in (noun, "Runs", "Unique outputs", "Unique digests", "First divergence")
    )
    rows = "".join(_row(prompt) for prompt in mode.prompts)
    figures = "".join(_figure(prompt) for prompt in mode.prompts)
    return (
        f"<section>\n<h2>Mode: {mode.mode}{note}</h2>\n"
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f"</div>\n{_divergence(mode.first_divergence, noun)}{figures}</section>\n"
    )


def _row(prompt: PromptResult) -> str:
    kind = "good" if not prompt.divergent_runs else "bad"
    first = prompt.first_divergence
    counts = (len(prompt.runs), prompt.unique_outputs, prompt.unique_digests)
    return (
        f"<tr><td>{escape(prompt.target.label)}</td>"
        + "".join(f'<td class="number {kind}">{count}</td>' for count in counts)
        + f"<td class=number>{'none' if first is None else f'run {first.run + 1}'}</td></tr>"
    )


def _figure(prompt: PromptResult) -> str:
    counts = Counter(prompt.runs)
    listed = sorted(range(len(prompt.answers)), key=lambda number: (-counts[number], number))
    items = "".join(
        f'<tr><td><span class="swatch" style="background:{color(number)}"></span></td>'
        f"<td class=number>{counts[number]}</td><td><code>{prompt.answers[number].digest[:16]}"
        f'</code></td><td class="answer">{escape(prompt.answers[number].text)}</td></tr>'
        for number in listed[:_MOST_ANSWERS]
    )
    more = len(listed) - _MOST_ANSWERS
    rest = f"<p class=soft>and {more} more answers</p>" if more > 0 else ""
    return (
        f"<figure>\n<h3>{escape(prompt.target.label)}</h3>\n{squares(prompt)}"
        f"{heat_map(prompt)}{margin_chart(prompt)}"
        '<div class="scroll"><table><thead><tr><th></th><th class=number>Runs</th><th>Digest</th>'
        f"<th>Answer</th></tr></thead><tbody>{items}</tbody></table></div>{rest}\n</figure>\n"
    )


def _divergence(first: Divergence | None, noun: str) -> str:
    if first is None:
        return ""
    rows = "".join(_answer(name, one, first.position) for name, one in _sides(first))
    unit = first.expected.unit.capitalize()
    return (
        f"<h3>First divergence</h3>\n<p>{noun} {first.prompt + 1}, run {first.run + 1}, in load "
        f"{first.load.number} of {len(first.load.rows)} requests: {first.what}.</p>\n"
        f'<div class="scroll"><table><thead><tr><th></th><th class=number>{unit}</th>'
        f"<th>Digest</th><th>Answer</th></tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _sides(first: Divergence) -> tuple[tuple[str, Answer], tuple[str, Answer]]:
    return ("alone", first.expected), ("in the load", first.got)


def _answer(name: str, answer: Answer, position: int | None) -> str:
    token = answer.token_at(position)
    return (
        f"<tr><th scope=row>{name}</th><td class=number>{'' if token is None else token}</td>"
        f"<td><code>{answer.digest[:16]}</code></td>"
        f'<td class="answer">{escape(answer.text)}</td></tr>'
    )
