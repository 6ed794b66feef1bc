"""The catalogue of compilations, and the audit of all of them.

Workers import the kernels and keep them: what crosses between processes is names, numbers and
findings. The first half of this file runs here, the second in the workers.
"""

from __future__ import annotations

import functools
import importlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detinfer.compile_audit import compiling
from detinfer.compile_audit.cases import OPS, Case
from detinfer.compile_audit.rules import ON_GFX942, ONLY_ALIGNED, RULES, k_order
from detinfer.compile_audit.workers import TaskError, Workers
from detinfer.errors import ConfigError
from detinfer.kernels.triton.launch import ARCHITECTURES

NVIDIA = tuple(f"sm_{arch}" for arch in ARCHITECTURES)
AMD = "gfx942"  # only with --full: no launch table is written for it, so it takes sm_80's
MOST = 400  # compilations by default; more would make the audit too slow to be run


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


@dataclass(frozen=True)
class Result:
    """What an audit found.

    Attributes:
        triton: its version.
        compilations: how many there were; a case may share one.
        checked: every case that compiled.
        findings: of all kinds; empty if all is well.
        notes: what was left out, and why.
    """

    triton: str
    compilations: int
    checked: tuple[Checked, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def case_modules() -> list[str]:
    """Modules of the cases of the project's kernels."""
    return [f"detinfer.compile_audit.cases.{op}" for op in OPS]


def audit(
    modules: Sequence[str],
    architectures: Sequence[str],
    workers: int,
    *,
    full: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Compile every case of the modules for the architectures and apply every rule.

    Args:
        full: also without alignment, and 16-bit cases also in the other 16-bit type.
        progress: called with compilations done and their number.

    Raises:
        ConfigError: nothing can be compiled on this machine.
    """
    with (
        tempfile.TemporaryDirectory(prefix="detinfer-audit-") as folder,
        Workers(workers, Path(folder)) as pool,
    ):
        triton = _toolchain(pool)
        architectures, notes = _possible(pool, architectures)
        findings: list[Finding] = []
        jobs: list[Job] = []
        wanted = [(module, arch, full) for arch in architectures for module in modules]
        for (module, arch, _), listed in pool.map(list_jobs, wanted):
            if isinstance(listed, TaskError):
                findings.append(Finding("cases", arch, module, "", str(listed)))
            else:
                jobs += listed
        # The order of workers' answers is not ours.
        jobs.sort(key=lambda job: (architectures.index(job.arch), job.module, job.indices))
        if not full and len(jobs) > MOST:
            message = f"{len(jobs)} compilations, at most {MOST} expected without --full"
            findings.append(Finding("cases", "", "", "", message))
        checked: list[Checked] = []
        progress(0, len(jobs))
        for done, (job, cases) in enumerate(pool.map(examine, jobs), start=1):
            if isinstance(cases, TaskError):
                for name in job.names:
                    findings.append(Finding("compiles", job.arch, job.module, name, str(cases)))
            else:
                checked += cases
            progress(done, len(jobs))
    place = {arch: number for number, arch in enumerate(architectures)}
    checked.sort(key=lambda one: (place[one.arch], one.module, one.case))
    findings += [finding for one in checked for finding in one.findings]
    findings += disagreements(checked)
    findings.sort(key=lambda one: (place.get(one.arch, -1), one.module, one.case, one.rule))
    return Result(triton, len(jobs), tuple(checked), tuple(findings), notes)


def disagreements(checked: Sequence[Checked]) -> Iterator[Finding]:
    """Weights whose launch configurations do not all cut k alike: their bits would differ."""
    weights: dict[tuple[str, str, str], dict[str, list[str]]] = defaultdict(dict)
    for one in checked:
        if one.weight is not None:
            orders = weights[one.arch, one.module, one.weight]
            orders.setdefault(one.k_order, []).append(one.case)
    for (arch, module, weight), orders in weights.items():
        if len(orders) > 1:
            parts = [f"{order} in {', '.join(cases[:3])}" for order, cases in orders.items()]
            yield Finding("k-order", arch, module, weight, f"{'; '.join(parts)}: expected one")


def _toolchain(pool: Workers) -> str:
    (_, answer), *_ = pool.map(_call, [compiling.toolchain])
    if isinstance(answer, TaskError):
        raise ConfigError(f"--compile-audit: Triton's compiler cannot be used here: {answer}")
    return str(answer)


def _possible(
    pool: Workers, architectures: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the architectures this Triton compiles for, and a note on one it does not."""
    if AMD in architectures:
        (_, answer), *_ = pool.map(_call, [_amd_backend])
        if isinstance(answer, TaskError):
            rest = tuple(arch for arch in architectures if arch != AMD)
            return rest, (f"{AMD} left out: {answer}",)
    return tuple(architectures), ()


# In the workers.


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _amd_backend() -> None:
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
            jobs[compiling.key(varied(case, variant))].append((variant, index))
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
