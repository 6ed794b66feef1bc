"""``detinfer doctor``: what this machine can run, and what would be refused."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from detinfer import __version__
from detinfer.config import EngineConfig
from detinfer.environment import check_package, check_threading_layer
from detinfer.errors import ConfigError, DetinferError
from detinfer.folders import cache_dir, cache_problem, nearest
from detinfer.machine import usable_cores

_DISTRIBUTION = "detinfer-server"
_LIBRARIES = ("torch", "transformers", "numba", "llvmlite", "numpy", "fastapi", "uvicorn")
_VECTOR_FEATURES = ("avx2", "fma", "avx512f", "avx512bf16", "amx-bf16", "neon", "sve")
_MODEL_KV_MEMORY = 64 << 20  # bytes; enough to load a model that will answer nothing


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``problem`` says what would be refused, and the fix."""

    name: str
    value: str
    problem: str | None = None


def run(model: str | None = None, *, as_json: bool) -> int:
    """Print the report.

    Args:
        model: what to load at the end; None is the default model, if it was fetched before.
        as_json: print JSON.

    Returns:
        0 if everything works, 2 if something would be refused.
    """
    findings = list(examine(model))
    problems = [finding for finding in findings if finding.problem]
    if as_json:
        rows = [{"name": one.name, "value": one.value, "problem": one.problem} for one in findings]
        print(json.dumps({"ok": not problems, "findings": rows}, indent=2, ensure_ascii=False))
    else:
        _print_table(findings)
    return 2 if problems else 0


def examine(model: str | None = None) -> Iterator[Finding]:
    """Look at everything, cheapest first; the default model only if it was fetched before."""
    yield Finding("detinfer", __version__, _problem(_check_distribution))
    yield Finding("python", f"{platform.python_version()} on {platform.system()}")
    yield _cores()
    yield from _cpu()
    yield Finding("libraries", ", ".join(_versions()))
    yield _openmp()
    yield _layer()
    yield _gpu()
    yield _cache()
    yield Finding("profile", "portable (device cpu); native with --device cuda")
    yield from _model(model)


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except DetinferError as error:
        return str(error)
    return None


def _check_distribution() -> None:
    check_package()
    try:
        importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"environment: the distribution {_DISTRIBUTION} is not installed: "
            f"pip install {_DISTRIBUTION}"
        ) from None


def _cores() -> Finding:
    usable, all_cores = usable_cores(), os.cpu_count() or 1
    note = "" if usable == all_cores else f" (affinity allows {usable} of {all_cores})"
    return Finding("cores", f"{usable}{note}")


def _cpu() -> Iterator[Finding]:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    vector = [name for name in _VECTOR_FEATURES if features.get(name)]
    yield Finding("cpu", f"{platform.machine()} {binding.get_host_cpu_name()}")
    yield Finding("vector instructions", ", ".join(vector) or "baseline")
    chosen = os.environ.get("NUMBA_CPU_NAME")
    yield Finding("kernel target", f"{chosen} (NUMBA_CPU_NAME)" if chosen else "the cpu itself")


def _versions() -> Iterator[str]:
    for name in _LIBRARIES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} missing"


def _openmp() -> Finding:
    # Only information: what decides is whether Numba has a layer to run on.
    library = ctypes.util.find_library("gomp")
    return Finding("libgomp", library or "not found")


def _layer() -> Finding:
    try:
        return Finding("threading layer", check_threading_layer())
    except ConfigError as error:
        return Finding("threading layer", "workqueue", str(error))


def _gpu() -> Finding:
    import torch

    build = torch.version.cuda or torch.version.hip or "cpu"
    if not torch.cuda.is_available():
        return Finding("gpu", f"none usable (torch build: {build})")
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    return Finding("gpu", f"{name}, sm_{major}{minor} (torch build: {build}): --device cuda")


def _cache() -> Finding:
    folder = cache_dir()
    if (problem := cache_problem()) is not None:
        return Finding("cache", str(folder), problem)
    free = shutil.disk_usage(nearest(folder)).free
    return Finding("cache", f"{folder}, {free / (1 << 30):.1f} GiB free")


def _model(model: str | None) -> Iterator[Finding]:
    name = "model" if model else "default model"
    if model is None:
        from detinfer.checkpoint import default_model
        from detinfer.checkpoint.loader import has_default_model

        if not has_default_model():
            yield Finding(name, f"{default_model.NAME}: not fetched yet (detinfer pull)")
            return
    from detinfer.checkpoint.loader import check_model

    problem = _problem(lambda: check_model(model))
    if problem:
        yield Finding(name, str(model), problem)
        return
    from detinfer.checkpoint.generation_defaults import not_applied
    from detinfer.runner.portable import ModelRunner

    config = EngineConfig(model=model, kv_cache_memory=_MODEL_KV_MEMORY, allow_fast=False)
    try:
        runner = ModelRunner(config.resolve())
    except DetinferError as error:
        yield Finding(name, model or default_model.NAME, str(error))
        return
    yield Finding(name, f"{runner.model_name}, plan {runner.plan}, {runner.dtype}")
    if runner.generation_defaults:
        yield Finding("sampling", not_applied(runner.generation_defaults))
    yield Finding("fingerprint", runner.fingerprint.system_fingerprint)


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for finding in findings:
        mark = "[red]✗[/]" if finding.problem else "[green]✓[/]"
        table.add_row(mark, f"[bold]{finding.name}[/]", escape(finding.value))
        if finding.problem:
            table.add_row("", "", f"[red]{escape(finding.problem)}[/]")
    Console(highlight=False).print(table)
