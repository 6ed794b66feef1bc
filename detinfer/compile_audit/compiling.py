"""One compilation without a GPU, and what is read from it. Runs in the workers."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detinfer.compile_audit.cases import Case
from detinfer.kernels.triton.launch import options_for
from detinfer.kernels.triton.overlap import take_turn

_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
_LOCAL_MEMORY = re.compile(r"\b(?:STL|LDL)\b")


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        arch: ``sm_90`` or ``gfx942``.
        op: first word of the name of the module the kernel's cases are in.
        text: PTX, or AMD's assembly.
        sass: NVIDIA's machine code, disassembled; empty for AMD.
        ttgir: Triton's last own form of it.
        registers: a thread's.
        stack: bytes of a thread's stack frame.
        spills: accesses to local memory, in instructions.
        shared: bytes of shared memory of a program.
        fusion: whether the compiler was free to contract.
        seconds: the compilation took.
    """

    arch: str
    op: str
    text: str
    sass: str
    ttgir: str
    registers: int
    stack: int
    spills: int
    shared: int
    fusion: bool
    seconds: float


def toolchain() -> str:
    """Triton's version.

    Raises:
        ImportError: no Triton here.
        RuntimeError: its compiler lacks a tool the audit needs.
    """
    import triton

    for tool in ("ptxas", "nvdisasm", "cuobjdump"):
        getattr(triton.knobs.nvidia, tool)
    return str(triton.__version__)


def key(case: Case, arch: str) -> str:
    """Equal for cases that are the same compilation."""
    parts = (_source(case, arch).hash(), sorted(_options(case, arch).items()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def compile_case(case: Case, arch: str, module: str) -> Compiled:
    """Compile for an architecture that need not be here; any error is Triton's own."""
    import triton
    from triton.backends.compiler import GPUTarget

    amd = arch.startswith("gfx")
    target = (
        GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    )
    start = time.perf_counter()
    kernel = triton.compile(_source(case, arch), target=target, options=_options(case, arch))
    seconds = time.perf_counter() - start
    text = kernel.asm["amdgcn" if amd else "ptx"]
    sass, registers, stack, spills = ("", *_amd(text)) if amd else _nvidia(kernel.asm["cubin"])
    return Compiled(
        arch=arch,
        op=module.rpartition(".")[2].partition("_")[0],
        text=text,
        sass=sass,
        ttgir=kernel.asm["ttgir"],
        registers=registers,
        stack=stack,
        spills=spills,
        shared=kernel.metadata.shared,
        fusion=kernel.metadata.enable_fp_fusion,
        seconds=seconds,
    )


def _launched(case: Case, arch: str) -> Mapping[str, Any]:
    number = int(arch.removeprefix("sm_")) if arch.startswith("sm_") else 0
    return options_for(number, early=starts_early(case))


def starts_early(case: Case) -> bool:
    """Tell whether the kernel is launched to start before the one before it has ended."""
    return f"{take_turn.__name__}(" in case.kernel.src


def _source(case: Case, arch: str) -> Any:
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    fixed = {name: value for name, value in _launched(case, arch).items() if name in names}
    unknown = (case.signature.keys() | case.constants.keys() | fixed.keys()) ^ set(names)
    if unknown:
        raise ValueError(f"signature and constants: not the kernel's own: {sorted(unknown)}")
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in {**case.constants, **fixed}.items()}
    divisible = {(names.index(name),): [["tt.divisibility", 16]] for name in sorted(case.aligned)}
    return ASTSource(case.kernel, signature, constants, divisible)


def _options(case: Case, arch: str) -> Mapping[str, Any]:
    launched = {k: v for k, v in _launched(case, arch).items() if k not in case.kernel.arg_names}
    return {"num_warps": case.warps, "num_stages": case.stages, **launched, **case.options}


def _nvidia(cubin: bytes) -> tuple[str, int, int, int]:
    """(SASS, registers, stack, spills)."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass = _run(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
        usage = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
    found = _RESOURCES.search(usage)
    if found is None:
        raise RuntimeError(f"cuobjdump: no resource usage in {usage!r}")
    return sass, int(found[1]), int(found[2]), len(_LOCAL_MEMORY.findall(sass))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _amd(text: str) -> tuple[int, int, int]:
    """Return (registers, stack, spills) as the code object's metadata has them."""

    def read(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        if found is None:
            raise RuntimeError(f"no {name} in the code object's metadata")
        return int(found[1])

    spills = read("vgpr_spill_count") + read("sgpr_spill_count")
    return read("vgpr_count"), read("private_segment_fixed_size"), spills
