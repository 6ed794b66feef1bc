"""An engine in a process of its own: it reads prompts from one pipe, and tells seconds by another.

What runs in a peer's environment imports this module and its engine, nothing of detinfer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# All prompts of a call are of one length. Gives what is worth telling besides, such as digests.
Generate = Callable[[list[list[int]], int], "dict[str, Any]"]


def serve(load: Callable[[str], Generate]) -> None:
    """Load the model named in argv, then time what is asked until EOF: the process's side."""
    # Libraries print to stdout as they like; answers go where it was.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    generate = load(sys.argv[1])
    print("{}", file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        told = generate(asked["prompts"], asked["tokens"])
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, **told}), file=answers)


class Peer:
    """The benchmark's side.

    Args:
        python: interpreter that has the engine.
        script: calls ``serve``.
        model: what the script loads.
        log: what the engine prints.
    """

    def __init__(self, python: Path, script: Path, model: str, log: Path) -> None:
        self._log = log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [python, script, model],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def wait_loaded(self) -> None:
        """Raise RuntimeError with the last thing the engine said, if it could not load."""
        self._read()

    def generate(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """``seconds`` for exactly ``tokens`` tokens after each prompt, and what else it tells."""
        assert self._process.stdin is not None
        print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin)
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            said = self._log.read_text().strip().splitlines() or ["nothing said"]
            raise RuntimeError(f"ended with {self._process.returncode}: {said[-1]}")
        return dict(json.loads(line))
