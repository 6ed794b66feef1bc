"""Grammars tried in a process of their own, which may not work long at one.

The compiler has bounds of its own, but not on everything: intersections of a few dozen patterns
take it hours, and nothing ends a thread. This process ends itself when a grammar has taken it more
than ``SECONDS`` of processor time, or breaks; the next one begins with a new process.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence

from detinfer.engine.rules import failure_of, make_matcher, make_table, read_rules

SECONDS = 0.7
# The compiler goes down a chain of rules by calling itself: enough for one of the longest text.
STACK_BYTES = 512 << 20


class Trial:
    """The engine's side; used by one thread, whose priority the process has.

    Args:
        tokenizer, vocab_size, ends: as ``make_table`` has them.
    """

    def __init__(self, tokenizer: str, vocab_size: int, ends: Sequence[int]) -> None:
        self._tokenizer = json.dumps([tokenizer, vocab_size, list(ends)])
        self._process: subprocess.Popen[str] | None = None

    def rules(self, field: str, text: str) -> str:
        """Return what compiles, and within the bounds.

        Raises:
            ValueError: why it does not.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([field, text]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._process, status = None, process.wait()
            self._end()
            if status == -signal.SIGPROF:
                raise ValueError(f"got one that takes more than {SECONDS:g} s of work to compile")
            raise ValueError("got one that the compiler breaks at")
        told = json.loads(line)
        if "failure" in told:
            raise ValueError(told["failure"])
        return str(told["rules"])

    def _start(self) -> subprocess.Popen[str]:
        code = f"import sys; sys.path[:] = {sys.path!r}; import {__name__} as one; one.main()"
        # No signal of the terminal reaches it. In a session of its own it would be a group of its
        # own to the scheduler too, and its priority would count for nothing.
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            process_group=0,
        )
        self._end = weakref.finalize(self, _end, process)
        assert process.stdin is not None
        process.stdin.write(self._tokenizer + "\n")
        process.stdin.flush()
        return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def main() -> None:
    """Try what comes in, line by line, until nothing more does."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=_try_all)
    worker.start()
    worker.join()


def _try_all() -> None:
    table = make_table(*json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        field, text = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            rules = read_rules(field, text)
            failure = failure_of(make_matcher(table, rules))
        except BaseException as error:  # a panic of the compiler's is none of ours
            failure = " ".join(str(error).split())[:300] or type(error).__name__
        signal.setitimer(signal.ITIMER_PROF, 0)
        told = {"rules": rules} if failure is None else {"failure": failure}
        print(json.dumps(told), flush=True)
