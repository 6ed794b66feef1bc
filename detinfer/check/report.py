"""Reports on disk: JSON for programs, JUnit's XML for CI, one HTML page for people."""

from __future__ import annotations

import json
import re
from pathlib import Path

from detinfer.check.junit import render_junit
from detinfer.check.page import render_page
from detinfer.check.repro import render_repro
from detinfer.check.result import CheckResult
from detinfer.errors import ConfigError
from detinfer.output_file import OutputFile

# Only between the lines of indented JSON: strings have no line breaks of their own.
_INTEGERS = re.compile(r"\[\n\s*(-?\d+(?:,\n\s*-?\d+)*)\n\s*\]")


def _render_json(result: CheckResult) -> str:
    """Indented, but token ids in one line."""
    text = json.dumps(result.to_json(), ensure_ascii=False, indent=2)
    return _INTEGERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


_RENDER = {
    ".json": _render_json,
    ".html": render_page,
    ".xml": render_junit,
}


class Report:
    """A file that a result will be written to, known to be writable before the long work starts.

    Raises:
        ConfigError: neither .json, .html nor .xml, or it cannot be written there.
    """

    def __init__(self, path: str) -> None:
        self._suffix = Path(path).suffix
        if self._suffix not in _RENDER:
            raise ConfigError(f"--report: got {path!r}, expected a .html, .json or .xml file")
        self._file = OutputFile("--report", path)
        self._repro = OutputFile("--report", str(Path(path).with_suffix(".repro.json")))

    def write(self, result: CheckResult) -> None:
        """Write the whole file or leaves what was there.

        Raises:
            ConfigError: the disk is full, or the folder went away meanwhile.
        """
        self._file.write(_RENDER[self._suffix](result))

    def write_repro(self, result: CheckResult) -> Path:
        """Write beside it what plays the shrunk load again, and return where.

        Raises:
            ConfigError: as ``write``.
        """
        self._repro.write(render_repro(result))
        return self._repro.path
