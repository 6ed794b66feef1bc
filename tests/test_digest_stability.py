"""The default model's digests: those of the contract's version, and one whatever computes them.

They move with the version alone: a change that moves them must raise ``PORTABLE_CONTRACT`` or
``SAMPLER_VERSION``, and adds its digests by ``python tests/support/golden_digests.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import golden_digests
import pytest

from detinfer import LLM
from detinfer.checkpoint.loader import ModelFiles
from detinfer.machine import usable_cores

slow = pytest.mark.slow
# Of what the record has of each version: no digest in it changes, and none is added later.
SEALS = {
    "portable-1, sampler 1": "fa755fbebf782c74190816ff7d80f9f519c653d962c05ece92aa6c650c47c519",
}

COMMAND = [sys.executable, "-m", "detinfer.cli", "generate", "--json", "--max-tokens", "24"]
PROMPT = ["--prompt", "A list of three fruits:\n1."]


def generate(*flags: str, **environment: str) -> dict[str, object]:
    """One answer by a process of its own."""
    done = subprocess.run(
        [*COMMAND, *PROMPT, *flags],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module", params=golden_digests.WEIGHTS)
def golden(default_model: ModelFiles, request: pytest.FixtureRequest) -> tuple[str, LLM]:
    return request.param, golden_digests.load(request.param)


def test_digests_are_those_of_the_contracts_version(golden: tuple[str, LLM]) -> None:
    weights, llm = golden
    assert golden_digests.digests(llm) == golden_digests.record()[golden_digests.VERSION][weights]


def test_a_prompt_alone_has_the_digest_it_has_among_others(golden: tuple[str, LLM]) -> None:
    weights, llm = golden
    expected = golden_digests.record()[golden_digests.VERSION][weights]
    prompt = golden_digests.PROMPTS[4]
    for name, params in golden_digests.PARAMS.items():
        [alone] = llm.generate([prompt], params)
        assert alone.digest == expected[f"{name}: {prompt}"]


def test_the_record_of_a_version_is_never_written_again() -> None:
    known = golden_digests.record()
    assert {version: golden_digests.seal(entry) for version, entry in known.items()} == SEALS
    with pytest.raises(SystemExit, match="is in the record"):
        golden_digests.main()


def test_another_digest_breaks_the_seal() -> None:
    known = golden_digests.record()[golden_digests.VERSION]
    assert all(len(set(digests.values())) == 16 for digests in known.values())
    assert not set(known["packed"].values()) & set(known["dequantized"].values())
    name = next(iter(known["packed"]))
    known["packed"][name] = known["dequantized"][name]
    assert golden_digests.seal(known) != SEALS[golden_digests.VERSION]


@pytest.fixture(scope="module", params=["dequantized", "packed"])
def weights(request: pytest.FixtureRequest) -> list[str]:
    """The flag under which a test's answers are made."""
    return ["--weights", request.param]


@pytest.fixture(scope="module")
def first(default_model: ModelFiles, weights: list[str]) -> dict[str, object]:
    return generate(*weights)


@slow
@pytest.mark.parametrize("threads", range(1, min(usable_cores(), 4) + 1))
def test_threads(first: dict[str, object], weights: list[str], threads: int) -> None:
    assert generate(*weights, "--threads", str(threads))["digest"] == first["digest"]


@slow
def test_modules_plan(first: dict[str, object], weights: list[str]) -> None:
    assert generate(*weights, "--plan", "modules")["digest"] == first["digest"]


@slow
def test_avx2(first: dict[str, object], weights: list[str]) -> None:
    # Without the second variable Numba adds this CPU's own features to the named one.
    other = generate(*weights, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="")
    assert other["digest"] == first["digest"]
    assert other["system_fingerprint"] == first["system_fingerprint"]


@slow
def test_another_prompt_has_another_digest(first: dict[str, object], weights: list[str]) -> None:
    assert generate(*weights, "--prompt", "A list of four fruits:\n1.")["digest"] != first["digest"]
