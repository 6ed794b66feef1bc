"""README and docs name no file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
TOPS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}


def named(text: str) -> list[str]:
    """Paths in code spans that begin with one of our folders, pytest's node ids cut off."""
    spans = re.findall(r"`([^`\n]+)`", text)
    words = [word for span in spans for word in span.split()]
    return [word.split("::")[0] for word in words if word.split("/")[0] in TOPS and "/" in word]


def linked(path: Path) -> list[Path]:
    """Files that links of a document lead to."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
    return [path.parent / target for target in targets if "://" not in target]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_file_that_is_named_is_there(path: Path) -> None:
    missing = [name for name in named(path.read_text()) if not list(ROOT.glob(name.rstrip("/")))]
    missing += [str(target) for target in linked(path) if not target.exists()]
    assert missing == []


def test_names_are_found() -> None:
    assert named("see `tests/test_docs.py::test_names_are_found` and `detinfer check`") == [
        "tests/test_docs.py"
    ]
    assert sum(len(named(path.read_text())) for path in DOCS) > 50
