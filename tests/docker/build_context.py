"""The build context: what .dockerignore leaves of a checkout, and copying from it as COPY does."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from dockerfile import Copy, DockerfileError


class Ignore:
    """The rules of a .dockerignore file: ``*``, ``!NAME`` and ``**/NAME``; the last one decides."""

    def __init__(self, text: str) -> None:
        lines = text.splitlines()
        self._rules = [line for line in lines if line and not line.startswith("#")]
        for rule in self._rules:
            if not re.fullmatch(r"\*|!?(\*\*/)?[\w.]+", rule):
                raise DockerfileError(f".dockerignore: pattern {rule!r} is not supported")

    def __call__(self, path: str) -> bool:
        """Whether a path of the context is left out; a folder's rule covers what is in it."""
        parts = path.split("/")
        ignored = False
        for rule in self._rules:
            name = rule.removeprefix("!")
            places = parts if name.startswith("**/") else parts[:1]
            if name == "*" or name.removeprefix("**/") in places:
                ignored = not rule.startswith("!")
        return ignored


def copy_from_context(context: Path, ignore: Ignore, step: Copy, root: Path) -> None:
    """Copy as Docker does: symlinks inside a folder stay symlinks, everything belongs to root.

    Raises:
        DockerfileError: a source that is missing, ignored, or itself a symlink.
    """

    def left_out(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder).relative_to(context)
        return [name for name in names if ignore((inside / name).as_posix())]

    target = root / step.target.lstrip("/")
    for name in map(os.path.normpath, step.sources):
        source = context / name
        if source.is_symlink() or not source.exists() or ignore(name):
            raise DockerfileError(f"line {step.line}: {name} is missing, ignored or a symlink")
        if source.is_dir():
            shutil.copytree(source, target, True, left_out, shutil.copy, dirs_exist_ok=True)
        else:
            file = target / source.name if step.into_folder else target
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, file)
