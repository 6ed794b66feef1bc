"""pytest plugin: asserts that a model's answers are reproducible, and that no bit has moved.

    def test_answers_are_reproducible(assert_reproducible):
        assert_reproducible(["The capital of France is"], runs=1000)

    def test_no_bit_has_moved(deterministic_llm, golden_digest):
        [answer] = deterministic_llm.generate("The capital of France is")
        golden_digest(answer)

The model is that of ``--detinfer-model``, or the default one. Golden digests lie in
``golden_digests.json`` beside the tests; ``--update-golden-digests`` writes them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # every pytest run loads this plugin, and few ask for a model
    from detinfer.check.result import CheckResult
    from detinfer.engine.llm import LLM
    from detinfer.engine.outputs import Completion
    from detinfer.params import SamplingParams

FILE = "golden_digests.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the fixtures."""
    group = parser.getgroup("detinfer")
    group.addoption(
        "--detinfer-model", metavar="MODEL", help="of deterministic_llm; default: the default model"
    )
    group.addoption(
        "--update-golden-digests",
        action="store_true",
        help=f"write what golden_digest is given to {FILE} beside the tests",
    )


@pytest.fixture(scope="session")
def deterministic_llm(request: pytest.FixtureRequest) -> LLM:
    """Return the model, loaded once a session: ``detinfer.LLM``."""
    from detinfer import LLM

    return LLM(request.config.getoption("--detinfer-model"))


@pytest.fixture
def assert_reproducible(deterministic_llm: LLM) -> Callable[..., CheckResult]:
    """Return a function that answers prompts many times, each under another load.

    ``assert_reproducible(prompts, runs=1000, params=None, seed=None)`` fails where an answer is not
    the one its prompt gets alone, in any bit of its logits, and says under which load. Without
    params an answer has 32 tokens; the seed draws the loads.
    """

    def check(
        prompts: str | Sequence[str],
        runs: int = 1000,
        params: SamplingParams | None = None,
        seed: int | None = None,
    ) -> CheckResult:
        from detinfer.check import Check, EngineSubject, Target
        from detinfer.params import SamplingParams

        asked = params or SamplingParams(max_tokens=32)
        each = [prompts] if isinstance(prompts, str) else prompts
        targets = [Target(prompt, asked) for prompt in each]
        subject = EngineSubject(deterministic_llm.engine)
        result = Check(subject, targets, runs=runs, seed=seed).run()
        if not result.reproducible:
            pytest.fail(_told(result), pytrace=False)
        return result

    return check


def _told(result: CheckResult) -> str:
    from rich.console import Console

    from detinfer.check.display import print_result

    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        print_result(console, result)
    return captured.get()


@pytest.fixture
def golden_digest(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that compares an answer's digest with the one that was kept.

    ``golden_digest(answer, name="")``: names tell apart several answers of one test.
    """
    file = request.path.with_name(FILE)
    update = request.config.getoption("--update-golden-digests")

    def compare(answer: Completion, name: str = "") -> None:
        key = f"{request.path.name}::{request.node.name}" + (f" {name}" if name else "")
        now = {"digest": answer.digest, "fingerprint": answer.system_fingerprint}
        if not answer.digest:
            pytest.fail(f"{key}: the answer has no digest: {answer.error}", pytrace=False)
        if update:
            _keep(file, key, now)
            return
        kept = _read(file).get(key)
        if kept is None:
            line = f"{file} has no digest of {key!r}: run pytest --update-golden-digests"
            pytest.fail(line, pytrace=False)
        if kept["digest"] != answer.digest:
            line = f"{key}: digest {answer.digest} by {answer.system_fingerprint}, expected "
            line += f"{kept['digest']} by {kept['fingerprint']}; text now: {answer.text!r}"
            pytest.fail(line, pytrace=False)

    return compare


def _read(file: Path) -> dict[str, dict[str, str]]:
    if not file.exists():
        return {}
    try:
        found: dict[str, dict[str, str]] = json.loads(file.read_text())
        assert all({"digest", "fingerprint"} <= one.keys() for one in found.values())
    except (ValueError, AttributeError, AssertionError):
        pytest.fail(f"{file}: not a file of golden digests", pytrace=False)
    return found


def _keep(file: Path, key: str, now: dict[str, str]) -> None:
    from filelock import FileLock

    from detinfer.checkpoint.files import atomic_write

    with FileLock(file.with_suffix(".lock")):  # tests may run in several processes
        told = json.dumps(_read(file) | {key: now}, indent=1, sort_keys=True)
        atomic_write(file, (told + "\n").encode())
