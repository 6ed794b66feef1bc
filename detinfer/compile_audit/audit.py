"""The audit of all compilations: workers compile and check, here the answers are put together."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detinfer.compile_audit import compiling
from detinfer.compile_audit.cases import OPS
from detinfer.compile_audit.tasks import (
    AMD,
    Checked,
    Finding,
    Job,
    call,
    check_amd,
    examine,
    list_jobs,
)
from detinfer.compile_audit.workers import TaskError, Workers
from detinfer.errors import ConfigError
from detinfer.kernels.triton.launch import ARCHITECTURES

NVIDIA = tuple(f"sm_{arch}" for arch in ARCHITECTURES)
MOST = 400  # compilations by default; more would make the audit too slow to be run


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
    (_, answer), *_ = pool.map(call, [compiling.toolchain])
    if isinstance(answer, TaskError):
        raise ConfigError(f"--compile-audit: Triton's compiler cannot be used here: {answer}")
    return str(answer)


def _possible(
    pool: Workers, architectures: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the architectures this Triton compiles for, and a note on one it does not."""
    if AMD in architectures:
        (_, answer), *_ = pool.map(call, [check_amd])
        if isinstance(answer, TaskError):
            rest = tuple(arch for arch in architectures if arch != AMD)
            return rest, (f"{AMD} left out: {answer}",)
    return tuple(architectures), ()
