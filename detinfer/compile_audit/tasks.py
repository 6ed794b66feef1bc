"""What the workers do: list a module's compilations; compile one and apply every rule.

They import the kernels and keep them: what crosses between processes is names, numbers and
findings.
"""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from detinfer.compile_audit import compiling
from detinfer.compile_audit.cases import Case
from detinfer.compile_audit.rules import ON_GFX942, ONLY_ALIGNED, RULES, k_order

AMD = "gfx942"  # only with --full: no launch table is written for it, so it takes sm_80's


@dataclass(frozen=True)
class Finding:
    """Something wrong, and where."""

    rule: str
    arch: str
    module: str
    case: str
    message: str


@dataclass(frozen=True)
class Job:
    """One compilation: cases of a module that differ in expectations at most.

    Attributes:
        variant: ``""``; with ``--full`` also ``unaligned`` or ``fp16``.
    """

    module: str
    arch: str
    variant: str
    indices: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """A case after its rules."""

    arch: str
    module: str
    case: str
    kernel: str
    mma: str
    weight: str | None
    k_order: str
    registers: int
    spills: int
    shared: int
    seconds: float
    findings: tuple[Finding, ...]


def call(function: Callable[[], Any]) -> Any:
    """Return what a function returns there."""
    return function()


def check_amd() -> None:
    """Raise unless this Triton compiles for AMD."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    make_backend(GPUTarget("hip", AMD, 64))


@functools.cache
def _cases(module: str, arch: str) -> tuple[Case, ...]:
    cases = importlib.import_module(module).cases
    if arch == AMD:
        return tuple(case for case in cases(80) if not case.tma)
    return tuple(cases(int(arch.removeprefix("sm_"))))


def list_jobs(wanted: tuple[str, str, bool]) -> list[Job]:
    """Return a module's compilations for an architecture.

    Raises:
        ValueError: two cases of one name.
    """
    module, arch, full = wanted
    cases = _cases(module, arch)
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"cases({arch}): several are named {', '.join(twice)}")
    jobs: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for index, case in enumerate(cases):
        for variant in _variants(case) if full else ("",):
            jobs[compiling.key(varied(case, variant), arch)].append((variant, index))
    return [
        Job(
            module,
            arch,
            members[0][0],
            # A variant that is another case's own compilation needs no second look.
            indices := tuple(index for variant, index in members if variant == members[0][0]),
            tuple(varied(cases[index], members[0][0]).name for index in indices),
        )
        for members in jobs.values()
    ]


def _variants(case: Case) -> Iterator[str]:
    yield ""
    if case.aligned:
        yield "unaligned"
    if case.dtype == "bf16":
        yield "fp16"


def varied(case: Case, variant: str) -> Case:
    """Return a case without its alignment, or in float16."""
    if variant == "unaligned":
        return replace(case, name=f"{case.name} unaligned", aligned=frozenset())
    if variant == "fp16":
        return replace(
            case,
            name=f"{case.name} fp16",
            dtype="fp16",
            weight=case.weight and f"{case.weight} fp16",
            signature={name: kind.replace("bf16", "fp16") for name, kind in case.signature.items()},
            constants={name: _fp16(value) for name, value in case.constants.items()},
        )
    return case


def _fp16(value: Any) -> Any:
    import triton.language as tl

    if isinstance(value, tl.dtype):
        return tl.float16 if value == tl.bfloat16 else value
    return "fp16" if value == "bf16" else value


def examine(job: Job) -> list[Checked]:
    """Compile, and apply every rule to every case that shares the compilation."""
    cases = [varied(_cases(job.module, job.arch)[index], job.variant) for index in job.indices]
    code = compiling.compile_case(cases[0], job.arch, job.module)
    rules = ON_GFX942 if job.arch == AMD else tuple(RULES)
    if job.variant == "unaligned":
        rules = tuple(name for name in rules if name not in ONLY_ALIGNED)
    return [
        Checked(
            arch=job.arch,
            module=job.module,
            case=case.name,
            kernel=case.kernel.__name__,
            mma="" if job.arch == AMD else case.mma,
            weight=case.weight,
            k_order="" if job.arch == AMD or case.mma == "none" else k_order(case, code),
            registers=code.registers,
            spills=code.spills,
            shared=code.shared,
            seconds=round(code.seconds, 2),
            findings=tuple(
                Finding(name, job.arch, job.module, case.name, message)
                for name in rules
                for message in RULES[name](case, code)
            ),
        )
        for case in cases
    ]
