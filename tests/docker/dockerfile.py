"""Our Dockerfile as an image and the steps that make it; what ours does not use is refused."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_UNSUPPORTED = re.compile(r"#\s*(syntax|escape|check)\s*=|[^#].*<<", re.IGNORECASE)
_HEALTHCHECK = "--interval=10s --timeout=5s --start-period=5m --retries=3 CMD […]"
_HEALTHCHECK_FORM = re.compile(
    r"--interval=\d+s --timeout=(\d+)s --start-period=(\d+)m --retries=\d+\s+CMD (.*)"
)
_Variables = dict[str, str]
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class DockerfileError(Exception):
    """A line we cannot replay."""


@dataclass(frozen=True)
class Run:
    """A shell command in the image being built."""

    line: int
    command: str
    environment: dict[str, str]
    workdir: str
    user: str


@dataclass(frozen=True)
class Copy:
    """Files of the build context to an absolute path; a folder's contents, not itself."""

    line: int
    sources: tuple[str, ...]
    target: str
    into_folder: bool


@dataclass(frozen=True)
class Healthcheck:
    """A command that tells whether the server is well; times in seconds."""

    command: tuple[str, ...]
    timeout: int
    start_period: int


@dataclass
class Image:
    """The steps of a build, and what it ends in besides its files."""

    base: str = ""
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _DEFAULT_PATH})
    workdir: str = "/"
    user: str = "0:0"
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    healthcheck: Healthcheck | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    steps: list[Run | Copy] = field(default_factory=list)


def build(text: str, build_args: Mapping[str, str]) -> Image:
    """The image that a Dockerfile describes.

    Raises:
        DockerfileError: what our Dockerfile does not use, or an undeclared build argument.
    """
    image, arguments, given = Image(), dict[str, str](), dict(build_args)
    for line, keyword, rest in _instructions(text):
        try:
            _apply(image, arguments, given, line, keyword, rest)
        except ValueError as error:
            raise DockerfileError(f"line {line}: {keyword} {rest}: {error}") from None
    if given:
        raise DockerfileError(f"build argument {min(given)} is not declared by any ARG")
    return image


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """First line, keyword and rest of each instruction, its continuation lines joined."""
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if _UNSUPPORTED.match(line):
            raise DockerfileError(f"line {number}: a directive or heredoc is not supported")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if parts else number
        parts.append(line.rstrip().removesuffix("\\"))
        if not line.rstrip().endswith("\\"):
            keyword, _, rest = "".join(parts).strip().partition(" ")
            yield start, keyword, rest.strip()
            parts = []
    if parts:
        raise DockerfileError(f"line {start}: nothing follows the last backslash")


def _apply(
    image: Image, arguments: _Variables, given: _Variables, line: int, keyword: str, rest: str
) -> None:
    if not image.base and keyword not in ("ARG", "FROM"):
        raise ValueError("expected FROM first")
    if rest.startswith("--") and keyword != "HEALTHCHECK":
        raise ValueError("flags are not supported")
    environment = arguments | (image.environment if image.base else {})
    match keyword:
        case "ARG":
            name, _, default = _word(rest, environment).partition("=")
            arguments[name] = given.pop(name, default)
        case "FROM" if not image.base:
            image.base = _word(rest, environment)
            arguments.clear()  # as in Docker, an ARG before FROM serves FROM alone
        case "ENV":
            image.environment |= _pairs(rest, environment)
        case "LABEL":
            image.labels |= _pairs(rest, environment)
        case "RUN" if not rest.startswith("["):
            image.steps.append(Run(line, rest, environment, image.workdir, image.user))
        case "COPY":
            *sources, target = _words(rest, environment)
            if not sources:
                raise ValueError("expected SOURCE… TARGET")
            folder = target.endswith("/") or len(sources) > 1
            target = posixpath.normpath(posixpath.join(image.workdir, target))
            image.steps.append(Copy(line, tuple(sources), target, folder))
        case "WORKDIR":
            image.workdir = posixpath.join(image.workdir, _word(rest, environment))
        case "USER":
            image.user = _word(rest, environment)
            if not re.fullmatch(r"\d+:\d+", image.user):
                raise ValueError("expected UID:GID")
        case "EXPOSE":
            image.ports.append(int(_word(rest, environment)))
        case "HEALTHCHECK":
            form = _HEALTHCHECK_FORM.fullmatch(rest)
            if form is None:
                raise ValueError(f"expected {_HEALTHCHECK}")
            image.healthcheck = Healthcheck(_exec(form[3]), int(form[1]), 60 * int(form[2]))
        case "ENTRYPOINT":
            image.entrypoint = _exec(rest)
        case "CMD":
            image.command = _exec(rest)
        case _:
            raise ValueError("not supported")


def _words(text: str, variables: Mapping[str, str]) -> list[str]:
    if "$" in text and ("'" in text or "\\" in text):
        raise ValueError("quoted variables are not supported")
    try:
        return [string.Template(word).substitute(variables) for word in shlex.split(text)]
    except KeyError as error:
        raise ValueError(f"no variable {error}") from None


def _word(text: str, variables: Mapping[str, str]) -> str:
    words = _words(text, variables)
    if len(words) != 1:
        raise ValueError(f"expected one word, got {len(words)}")
    return words[0]


def _pairs(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in _words(text, variables)]
    if not all(name and equals for name, equals, _ in pairs):
        raise ValueError("expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _exec(text: str) -> tuple[str, ...]:
    if not text.startswith("["):
        raise ValueError("expected a JSON array")
    return tuple(json.loads(text))
