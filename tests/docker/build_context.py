"""The build context: what .dockerignore leaves of a checkout, and copying from it as COPY does."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath

from dockerfile import Copy, DockerfileError


class Ignore:
    """The patterns of a .dockerignore file; the last one that matches decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        rules = [line for line in lines if line and not line.startswith("#")]
        self._rules = [(rule.startswith("!"), _pattern(rule.removeprefix("!"))) for rule in rules]

    def __call__(self, path: str) -> bool:
        """Whether a path of the context is left out; a folder's rule covers what is in it."""
        candidates = [path, *map(str, PurePosixPath(path).parents)]
        ignored = False
        for exception, pattern in self._rules:
            if any(pattern.fullmatch(candidate) for candidate in candidates):
                ignored = not exception
        return ignored


def _pattern(rule: str) -> re.Pattern[str]:
    anywhere = rule.startswith("**/")
    name = rule.removeprefix("**/").strip("/")
    if not re.fullmatch(r"(?!.*\*\*)[\w.*/-]+", name):
        raise DockerfileError(f".dockerignore: pattern {rule!r} is not supported")
    return re.compile(("(.*/)?" if anywhere else "") + re.escape(name).replace(r"\*", "[^/]*"))


def copy_from_context(context: Path, ignore: Ignore, step: Copy, root: Path) -> None:
    """Copy as Docker does: symlinks inside a folder stay symlinks, everything belongs to root.

    Raises:
        DockerfileError: a source that is missing, ignored, or itself a symlink.
    """
    target = root / step.target.lstrip("/")
    for name in map(os.path.normpath, step.sources):
        source = context / name
        if source.is_symlink() or not source.exists() or ignore(name):
            raise DockerfileError(
                f"line {step.instruction.line}: {name} is missing, ignored or a symlink"
            )
        if source.is_dir():
            _copy_folder(context, ignore, source, target)
        else:
            _copy_file(source, target / source.name if step.into_folder else target)


def _copy_folder(context: Path, ignore: Ignore, source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        if ignore(entry.relative_to(context).as_posix()):
            continue
        if entry.is_symlink():
            (target / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir():
            _copy_folder(context, ignore, entry, target / entry.name)
        else:
            _copy_file(entry, target / entry.name)


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
