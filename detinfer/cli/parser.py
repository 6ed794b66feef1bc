"""How the command line is read: one line of complaint, which names the command and a way out."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

USAGE_ERROR = 2


class Parser(argparse.ArgumentParser):
    """argparse that complains in one line and takes no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        message = " ".join(message.removeprefix("argument ").split())
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message}; see {self.prog} --help\n")


class CommandParser(Parser):
    """The parser of one command, which refuses itself what it does not know."""

    def parse_known_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """Return the flags, all known; argparse would leave strange ones to the parser above."""
        passes_on = any(action.nargs == argparse.REMAINDER for action in self._actions)
        # Before argparse misses a required flag, which may be the one that is misspelt.
        for text in args or ():
            if text == "--" or (passes_on and not text.startswith("-")):
                break
            if text.startswith("--") and " " not in text:
                self._check_flag(text.partition("=")[0])
        found, strange = super().parse_known_args(args, namespace)
        if strange:
            self.error(f"unrecognized arguments: {' '.join(strange)}")
        return found, strange

    def _check_flag(self, flag: str) -> None:
        known = self._option_string_actions
        if flag not in known:
            close = difflib.get_close_matches(flag, known, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {flag}{hint}")


class Once(argparse.Action):
    """Stores a value that may be given in several ways, but once."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Refuse a second value."""
        before = getattr(namespace, self.dest, None)
        if before is not None:
            raise argparse.ArgumentError(self, f"got {values!r} beside {before!r}, expected one")
        setattr(namespace, self.dest, values)


def add_model_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """``MODEL``, first or as ``-m``, ``--model``."""
    parser.add_argument(
        "model",
        nargs="?",
        action=Once,
        default=argparse.SUPPRESS,
        metavar="MODEL",
        help=f"{what}; without one, SmolLM2-135M-Instruct",
    )
    parser.add_argument("-m", "--model", action=Once, metavar="MODEL", help="the same, as a flag")
