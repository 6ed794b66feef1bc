"""Equal bits from machine code for different CPUs: AVX-512, AVX2 with FMA, SSE4.2 without FMA."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "kernel_digests.py"

pytestmark = [
    pytest.mark.slow,  # compiles every kernel three times
    pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 CPUs"),
]


def digests(cache: Path, cpu: str | None) -> dict:
    """The script's answer with kernels compiled for a CPU; None is this one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    environment["DETINFER_CACHE"] = str(cache)
    if cpu is not None:
        # Without features of its own Numba would add this machine's to the named CPU.
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
        environment["ATEN_CPU_CAPABILITY"] = {"haswell": "avx2", "nehalem": "default"}[cpu]
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return digests(tmp_path_factory.mktemp("native"), None)


@pytest.mark.parametrize(
    ("cpu", "code"),
    [
        ("haswell", {"zmm": False, "ymm": True, "vfmadd": True}),
        ("nehalem", {"zmm": False, "ymm": False, "vfmadd": False}),
    ],
)
def test_every_instruction_set_gives_the_same_bits(native, tmp_path, cpu, code):
    other = digests(tmp_path, cpu)
    assert other["code"] == code
    assert other["digests"] == native["digests"]
    if cpu == "nehalem" and native["code"]["vfmadd"]:
        assert other["stock"] != native["stock"]  # the same comparison tells PyTorch's apart
