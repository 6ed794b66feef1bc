"""Equal bits from machine code for different CPUs: AVX-512, AVX2 with FMA, SSE4.2 without FMA.

Integers of packed weights come four ways: AVX-512 VNNI, AVX-VNNI, AVX2, and without any of them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding

SCRIPT = Path(__file__).parents[1] / "support" / "kernel_digests.py"

pytestmark = [
    pytest.mark.slow,  # compiles every kernel three times
    pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 CPUs"),
]


def digests(cache: Path, cpu: str | None, features: str = "") -> dict:
    """The script's answer with kernels compiled for a CPU; None is this one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    environment["DETINFER_CACHE"] = str(cache)
    if cpu is not None:
        # Without features of its own Numba would add this machine's to the named CPU.
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
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
    ("cpu", "features", "integers"),
    [
        ("haswell", "+avx2,+fma,+f16c,+avxvnni", "Dpbusd"),
        ("haswell", "+avx2,+fma,+f16c", "Maddubs"),
        ("nehalem", "", "Plain"),
    ],
)
def test_every_instruction_set_gives_the_same_bits(native, tmp_path, cpu, features, integers):
    here = binding.get_host_cpu_features()
    if missing := [one for one in features.replace("+", "").split(",") if one and not here[one]]:
        pytest.skip(f"this CPU has no {', '.join(missing)}")
    other = digests(tmp_path, cpu, features)
    modern = cpu == "haswell"
    assert other["code"] == {
        "zmm": False, "ymm": modern, "vfmadd": modern, "integers": integers,
        "spills": not modern,  # fma is a function there
    }  # fmt: skip
    assert other["digests"] == native["digests"]
    if cpu == "nehalem" and native["code"]["vfmadd"]:
        assert other["stock"] != native["stock"]  # the same comparison tells PyTorch's apart
