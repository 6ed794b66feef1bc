"""The text a GPU's kernels compile from, without what cannot change a bit."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Sequence
from pathlib import Path

from detinfer.kernels import constants, triton

# Kernels, how they are launched, and the constants both are made of.
FILES = (Path(constants.__file__), *sorted(Path(triton.__path__[0]).glob("*.py")))

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def kernel_sources(files: Sequence[Path] = FILES) -> str:
    """Return 16 hex digits of SHA-256 over the files' code: a part of the fingerprint."""
    code = "\n".join(code_of(path.read_text(encoding="utf-8")) for path in files)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def code_of(source: str) -> str:
    """Return a module's lines without comments, docstrings and blank lines.

    By their places in the text, so that every Python gives the same.
    """
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            first = node.body[0]
            for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
