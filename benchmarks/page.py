"""A benchmark's results for people: a Markdown page and a picture beside the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]


def shown(value: Any) -> str:
    """Return a figure as tables have it: three digits, or whole thousands."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return str(value)


def table(rows: Rows) -> str:
    """Return rows as a Markdown table; their keys are its head, underscores are spaces."""
    head = [name.replace("_", " ") for name in rows[0]]
    lines = [head, ["---"] * len(head), *([shown(v) for v in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: Path, result: dict[str, Any], parts: Sequence[str], picture: str | None) -> None:
    """Write ``path``, a JSON file's, with the endings ``.md`` and, if there is one, ``.svg``.

    Args:
        path: where the same figures are as JSON.
        result: those, of which title and machine are told.
        parts: paragraphs and tables.
        picture: an SVG.
    """
    title, machine = result["benchmark"], result["machine"]
    where = (
        f"{machine['cores']} cores of {machine['cpu']}, commit {machine['commit']}, "
        f"{machine['time']}; all figures: [{path.name}]({path.name})"
    )
    blocks = [f"# {title.capitalize()}", where, *parts]
    if picture is not None:
        path.with_suffix(".svg").write_text(picture)
        blocks.insert(2, f"![{title}]({path.stem}.svg)")
    path.with_suffix(".md").write_text("\n\n".join(blocks) + "\n")
