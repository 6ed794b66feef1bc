"""Enough of the Dockerfile language to replay ours; whatever is not known here is an error."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from dataclasses import dataclass, field

_FLAGS = {"HEALTHCHECK": {"interval", "timeout", "start-period", "retries"}}
_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=", re.IGNORECASE)
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S+))?\s+")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\}|)")
_DURATION = re.compile(r"(\d+)([sm])")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class DockerfileError(Exception):
    """A line we cannot replay."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continuation lines joined."""

    keyword: str
    flags: dict[str, str]
    text: str
    line: int


@dataclass(frozen=True)
class Run:
    """A command in the image being built."""

    command: tuple[str, ...]
    environment: dict[str, str]
    workdir: str
    user: str
    instruction: Instruction


@dataclass(frozen=True)
class Copy:
    """Files of the build context to an absolute path; a folder's contents, not itself."""

    sources: tuple[str, ...]
    target: str
    into_folder: bool
    instruction: Instruction


@dataclass(frozen=True)
class MakeFolder:
    """A working directory, made where it is missing."""

    path: str
    instruction: Instruction


@dataclass(frozen=True)
class Healthcheck:
    """A command that tells whether the server is well; times in seconds."""

    command: tuple[str, ...]
    interval: int
    timeout: int
    start_period: int
    retries: int


@dataclass
class Image:
    """What a build ends in, besides its files."""

    base: str = ""
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _DEFAULT_PATH})
    workdir: str = "/"
    user: str = "0"
    labels: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    healthcheck: Healthcheck | None = None
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def parse(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile.

    Raises:
        DockerfileError: an unknown keyword or flag, a heredoc, a parser directive.
    """
    instructions = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if _DIRECTIVE.match(line):
            raise DockerfileError(f"line {number}: parser directives are not supported")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start if parts else number
        if line.rstrip().endswith("\\"):
            parts.append(line.rstrip()[:-1])
            continue
        instructions.append(_instruction("".join([*parts, line]).strip(), start))
        parts = []
    if parts:
        raise DockerfileError(f"line {start}: nothing follows the last backslash")
    return instructions


def _instruction(text: str, line: int) -> Instruction:
    keyword, _, rest = text.partition(" ")
    keyword, rest = keyword.upper(), rest.lstrip()
    if keyword not in _APPLY and keyword != "FROM":
        raise DockerfileError(f"line {line}: got {keyword}, expected one of {', '.join(_APPLY)}")
    if "<<" in rest:
        raise DockerfileError(f"line {line}: heredocs are not supported")
    flags = {}
    while match := _FLAG.match(rest):
        if match[1] not in _FLAGS.get(keyword, ()) or not match[2]:
            raise DockerfileError(f"line {line}: {keyword} with --{match[1]} is not supported")
        flags[match[1]] = match[2]
        rest = rest[match.end() :]
    return Instruction(keyword, flags, rest, line)


class Build:
    """Evaluates instructions in order: the image they describe and the steps that make it."""

    def __init__(self, instructions: list[Instruction], build_args: dict[str, str]) -> None:
        self.image = Image()
        self.steps: list[Run | Copy | MakeFolder] = []
        self._build_args = build_args
        self._args: dict[str, str] = {}
        declared = set()
        for instruction in instructions:
            if instruction.keyword == "ARG":
                declared.add(instruction.text.partition("=")[0])
            if instruction.keyword == "FROM":
                self._from(instruction)
            elif instruction.keyword != "ARG" and not self.image.base:
                raise DockerfileError(f"line {instruction.line}: expected FROM first")
            else:
                _APPLY[instruction.keyword](self, instruction)
        if unknown := build_args.keys() - declared:
            raise DockerfileError(f"build argument {min(unknown)} is not declared by any ARG")

    def _words(self, instruction: Instruction) -> list[str]:
        text = instruction.text
        if "$" in text and ("'" in text or "\\$" in text):
            raise DockerfileError(f"line {instruction.line}: quoted variables are not supported")
        variables = self._args | (self.image.environment if self.image.base else {})

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in variables:
                raise DockerfileError(f"line {instruction.line}: no variable for {match[0]!r}")
            return variables[name]

        return [_VARIABLE.sub(value, word) for word in shlex.split(text)]

    def _word(self, instruction: Instruction) -> str:
        words = self._words(instruction)
        if len(words) != 1:
            raise DockerfileError(f"line {instruction.line}: expected one word, got {words}")
        return words[0]

    def _pairs(self, instruction: Instruction) -> dict[str, str]:
        pairs = [word.partition("=") for word in self._words(instruction)]
        if not all(name and equals for name, equals, _ in pairs):
            raise DockerfileError(f"line {instruction.line}: expected NAME=VALUE")
        return {name: value for name, _, value in pairs}

    def _absolute(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.image.workdir, path))

    def _from(self, instruction: Instruction) -> None:
        if self.image.base:
            raise DockerfileError(f"line {instruction.line}: a second stage is not supported")
        self.image.base = self._word(instruction)
        self._args = {}  # as in Docker, an ARG before FROM serves FROM alone

    def _arg(self, instruction: Instruction) -> None:
        name, _, default = self._word(instruction).partition("=")
        self._args[name] = self._build_args.get(name, default)

    def _env(self, instruction: Instruction) -> None:
        self.image.environment |= self._pairs(instruction)

    def _label(self, instruction: Instruction) -> None:
        self.image.labels |= self._pairs(instruction)

    def _run(self, instruction: Instruction) -> None:
        environment = self._args | self.image.environment
        image, command = self.image, _command(instruction)
        self.steps.append(Run(command, environment, image.workdir, image.user, instruction))

    def _copy(self, instruction: Instruction) -> None:
        *sources, target = self._words(instruction)
        if not sources or any(character in source for source in sources for character in "*?["):
            raise DockerfileError(f"line {instruction.line}: expected COPY SOURCE… TARGET")
        folder = target.endswith("/") or len(sources) > 1
        self.steps.append(Copy(tuple(sources), self._absolute(target), folder, instruction))

    def _workdir(self, instruction: Instruction) -> None:
        self.image.workdir = self._absolute(self._word(instruction))
        self.steps.append(MakeFolder(self.image.workdir, instruction))

    def _user(self, instruction: Instruction) -> None:
        self.image.user = self._word(instruction)

    def _expose(self, instruction: Instruction) -> None:
        self.image.ports += map(int, self._words(instruction))

    def _healthcheck(self, instruction: Instruction) -> None:
        keyword, _, rest = instruction.text.partition(" ")
        missing = _FLAGS["HEALTHCHECK"] - instruction.flags.keys()
        if keyword != "CMD" or missing:
            raise DockerfileError(
                f"line {instruction.line}: expected HEALTHCHECK {' '.join(sorted(missing))} CMD …"
            )
        self.image.healthcheck = Healthcheck(
            _command(Instruction("CMD", {}, rest.lstrip(), instruction.line)),
            interval=_seconds(instruction, "interval"),
            timeout=_seconds(instruction, "timeout"),
            start_period=_seconds(instruction, "start-period"),
            retries=int(instruction.flags["retries"]),
        )

    def _entrypoint(self, instruction: Instruction) -> None:
        self.image.entrypoint = _command(instruction)

    def _cmd(self, instruction: Instruction) -> None:
        self.image.command = _command(instruction)


def _command(instruction: Instruction) -> tuple[str, ...]:
    """The exec form as it stands; the shell form through ``sh``."""
    if not instruction.text.startswith("["):
        return ("/bin/sh", "-c", instruction.text)
    try:
        return tuple(json.loads(instruction.text))
    except json.JSONDecodeError as error:
        raise DockerfileError(f"line {instruction.line}: not a JSON array: {error}") from None


def _seconds(instruction: Instruction, flag: str) -> int:
    match = _DURATION.fullmatch(instruction.flags[flag])
    if match is None:
        raise DockerfileError(f"line {instruction.line}: --{flag}: expected 10s or 5m")
    return int(match[1]) * {"s": 1, "m": 60}[match[2]]


_APPLY = {
    "ARG": Build._arg,
    "ENV": Build._env,
    "LABEL": Build._label,
    "RUN": Build._run,
    "COPY": Build._copy,
    "WORKDIR": Build._workdir,
    "USER": Build._user,
    "EXPOSE": Build._expose,
    "HEALTHCHECK": Build._healthcheck,
    "ENTRYPOINT": Build._entrypoint,
    "CMD": Build._cmd,
}
