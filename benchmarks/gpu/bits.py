"""Equality of bits on the device: MMA families, launch configurations, and the small kernels.

Each section holds a negative control: something that must differ, compared the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.bench import Bench, Result, section
from benchmarks.gpu.device import normal
from benchmarks.gpu.sizes import Model
from detinfer.kernels import reference, reference_native, reference_sampling
from detinfer.kernels.constants import PAGE_SIZE
from detinfer.kernels.triton import activation, embedding, logits, matmul, norms, rope
from detinfer.kernels.triton.launch import architecture
from detinfer.kernels.triton.matmul import LinearConfig, Weight, linear
from detinfer.testing import same_bits

ROWS = (1, 2, 5, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257)  # around every bucket of the tables
WEIGHTS = ("normal", "scaled", "mirrored")
FEW_COLUMNS = 8192  # for which a thousand rows are cheap
_INTEGERS = {2: torch.int16, 4: torch.int32}


def differing(a: Tensor, b: Tensor) -> int:
    """Elements whose bits differ; any NaN equals any other. On the device."""
    assert a.shape == b.shape, (a.shape, b.shape)
    assert a.dtype == b.dtype, (a.dtype, b.dtype)
    kind = _INTEGERS[a.element_size()]
    unequal = (a.contiguous().view(kind) != b.contiguous().view(kind)) & ~(a.isnan() & b.isnan())
    return int(unequal.sum())


class Comparisons:
    """Launches compared with what they must equal; what differed, and what did not launch."""

    def __init__(self) -> None:
        self.count = 0
        self.unequal: list[str] = []
        self.failed: list[str] = []

    def check(self, what: str, launch: Callable[[], Tensor], expected: Tensor) -> None:
        """Compare, and note a failure: one launch must not hide the others."""
        self.count += 1
        try:
            count = differing(launch(), expected)
        except Exception as error:
            self.failed.append(f"{what}: {error}"[:300])
            return
        if count:
            self.unequal.append(f"{what}: {count} of {expected.numel()} elements")

    def result(self) -> Result:
        """For the section's result."""
        return {"comparisons": self.count, "unequal": self.unequal, "failed": self.failed}


def weights_of_kind(bench: Bench, kind: str, n: int, k: int, seed: int = 0) -> Tensor:
    """Return a weight [n, k], made so that sums round in different ways.

    ``normal``; ``scaled``, every column by 2^±12 at most; ``mirrored``, its right half the left
    one, so that rows of opposite halves cancel.
    """
    w = normal(bench, n, k, seed=seed)
    if kind == "scaled":
        exponent = torch.randint(-12, 13, (k,), device=bench.device, generator=bench.generator(1))
        w *= torch.exp2(exponent.float()).to(w.dtype)
    if kind == "mirrored":
        w[:, k - k // 2 :] = w[:, : k // 2]
    return w


def rows_of_every_kind(bench: Bench, count: int, k: int, dtype: torch.dtype) -> Tensor:
    """[5 * count + 2, k]: normal, scaled, cancelling, subnormal, zero; an Inf row, a NaN row."""
    every = normal(bench, 5 * count + 2, k, dtype=dtype, seed=7)
    kinds = every[: 5 * count].view(5, count, k)
    size = (count, k)
    exponent = torch.randint(-12, 13, size, device=bench.device, generator=bench.generator(8))
    kinds[1] *= torch.exp2(exponent.float()).to(dtype)
    kinds[2, :, k - k // 2 :] = -kinds[2, :, : k // 2] * (1 + 2**-6)
    kinds[3] *= 2.0**-16 if dtype == torch.float16 else 2.0**-128
    kinds[4] = 0
    every[-2, k // 3], every[-1, k // 2] = float("inf"), float("nan")
    return every


def plant_negative_zeros(x: Tensor, w: Tensor) -> None:
    """Make the last row of zeros of ``x`` give column 0 no product but -0.

    From +0 such a chain stays +0; an instruction that skips its first addend would give -0.
    """
    x[-3] = torch.zeros_like(w[0]).copysign(-w[0])


# MMA families


def families(smoke: bool) -> dict[str, LinearConfig]:
    """Tiles that compile to mma.sync, and to wgmma of every width, on Hopper."""
    swapped = {
        f"weights on M, {m} tokens": LinearConfig(m, 64, 64, 4, 3, swap=True)
        for m in ((16,) if smoke else (16, 32, 64, 128, 256))
    }
    return {
        "16 x 64": LinearConfig(16, 64, 64, 4, 3),
        "64 x 64": LinearConfig(64, 64, 64, 4, 3),
        "16 x 32, TMA": LinearConfig(16, 32, 128, 4, 4, tma=True),
        "128 x 128, TMA": LinearConfig(128, 128, 64, 8, 3, tma=True),
        "128 x 256, persistent": LinearConfig(128, 256, 64, 8, 3, tma=True, persistent=True),
        **swapped,
    }


@section("bits.mma", seconds=25)
def mma(bench: Bench) -> Result:
    """mma.sync against wgmma, and both against the published model of the tensor core."""
    tiles = families(bench.smoke)
    core = reference_native.AMPERE if architecture(bench.device) < 90 else reference_native.HOPPER
    found = Comparisons()
    model: dict[str, int] = {}
    elements = 0
    for dtype in (torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        for k in bench.sizes.depths:
            x = rows_of_every_kind(bench, max(2, bench.sizes.kind_rows // 4), k, dtype)
            w = normal(bench, 64, k, dtype=dtype, seed=9)
            plant_negative_zeros(x, w)
            first = _sums(x, w, next(iter(tiles.values())))
            for name, config in tiles.items():
                found.check(f"{kind} K={k} {name}", partial(_sums, x, w, config), first)
            expected = reference_native.linear(_wide(x), _wide(w), None, kind, "float32", core)
            model[f"{kind} K={k}"] = differing(first.cpu(), torch.from_numpy(expected))
            elements += first.numel()
    controls = _order_controls(bench, tiles["16 x 64"])
    return {
        "configurations": {name: asdict(config) for name, config in tiles.items()},
        "families_equal": not found.unequal,
        **found.result(),
        "model": "itself: the interpreter computes by it" if bench.smoke else str(core),
        "elements_unlike_the_model": model,
        "elements_compared": elements,
        **controls,
        "passed": not found.unequal and not found.failed and controls["groups_swapped_differ"] > 0,
    }


def _sums(x: Tensor, w: Tensor, config: LinearConfig | None = None) -> Tensor:
    """Return the unrounded products, into poisoned memory."""
    out = torch.full((len(x), len(w)), float("nan"), dtype=torch.float32, device=x.device)
    return linear(x, Weight(w), out=out, config=config)


def _wide(x: Tensor) -> Any:
    return x.float().cpu().numpy()


def _order_controls(bench: Bench, config: LinearConfig) -> Result:
    """Return the comparison's power: k exchanged inside a group of 16, and whole groups."""
    k = 64
    x = normal(bench, 64, k, seed=3)
    x *= torch.exp2(torch.arange(k, device=bench.device) % 13 - 6.0).to(x.dtype)
    w = normal(bench, 64, k, seed=4)
    plain = _sums(x, w, config)
    inside = torch.arange(k, device=bench.device).view(-1, 16).flip(1).reshape(-1)
    groups = torch.arange(k, device=bench.device).view(-1, 16)[[1, 0, 3, 2]].reshape(-1)
    return {
        "inside_a_group_differ": differing(_sums(x[:, inside], w[:, inside], config), plain),
        "groups_swapped_differ": differing(_sums(x[:, groups], w[:, groups], config), plain),
    }


# linear


@section("bits.linear", seconds=75)
def linears(bench: Bench) -> Result:
    """Every launch configuration of every weight, every row count, slot and order: equal bits."""
    shapes: dict[tuple[int, int], str] = {}
    for model in bench.sizes.bits:
        for layer, shape in model.linears().items():
            shapes.setdefault(shape, f"{model.name} {layer}")
    checked, unchecked, controls = [], [], []
    for (n, k), name in shapes.items():
        if bench.left() < 3:
            unchecked.append(name)
            continue
        started = time.monotonic()
        found = _check_weight(bench, n, k)
        controls.append(found.pop("control"))
        seconds = round(time.monotonic() - started, 2)
        checked.append({"weight": name, "n": n, "k": k, **found, "seconds": seconds})
    bad = [one for one in checked if one["unequal"] or one["failed"]]
    return {
        "weights": checked,
        "unchecked": unchecked,
        "comparisons": sum(one["comparisons"] for one in checked),
        "sums_of_halves_differ": sum(controls),
        "passed": not bad and not unchecked and all(controls),
    }


def _check_weight(bench: Bench, n: int, k: int) -> Result:
    x = rows_of_every_kind(bench, bench.sizes.kind_rows, k, torch.bfloat16)
    found = Comparisons()
    arch = architecture(bench.device)
    configs = matmul.configs(arch, x.dtype, n, k)
    unlike_model = control = 0
    for kind in WEIGHTS:
        w = weights_of_kind(bench, kind, n, k)
        plant_negative_zeros(x, w)
        whole = _sums(x, w)
        for config in configs:
            found.check(f"{kind}, {config}", partial(_sums, x, w, config), whole)
        for m in [m for m in ROWS if m <= len(x)][:: 4 if bench.smoke else 1]:
            found.check(f"{kind}, {m} rows", partial(_sums, x[:m], w), whole[:m])
        order = torch.randperm(len(x), device=bench.device, generator=bench.generator(5))
        found.check(f"{kind}, reordered", partial(_sums, x[order], w), whole[order])
        if not bench.smoke and n <= FEW_COLUMNS:
            many, expected = (rows.repeat(5, 1)[:1100] for rows in (x, whole))
            found.check(f"{kind}, 1,100 rows", partial(_sums, many, w), expected)
        unlike_model += _unlike_model(x[: bench.sizes.checked], w[:16], whole)
        control += differing(_sums_of_halves(x, w), whole)
    return {
        "configurations": len(configs),
        **found.result(),
        "elements_unlike_the_model": unlike_model,
        "control": control,
    }


def _unlike_model(x: Tensor, w: Tensor, whole: Tensor) -> int:
    """Elements of the first rows and columns that are not the NumPy model's."""
    expected = reference_native.linear(_wide(x), _wide(w), None, "bfloat16", "float32")
    return differing(whole[: len(x), : len(w)].cpu(), torch.from_numpy(expected))


def _sums_of_halves(x: Tensor, w: Tensor) -> Tensor:
    """Return the control: the two halves of k summed alone, as a split would."""
    half = x.shape[1] // 32 * 16
    left, right = (
        _sums(x[:, part].contiguous(), w[:, part].contiguous())
        for part in (slice(None, half), slice(half, None))
    )
    return left + right


@section("bits.cublas", seconds=10)
def cublas_varies(bench: Bench) -> Result:
    """Return why all this: how often the stock product of a row changes with the number of rows."""
    found = {}
    for layer, (n, k) in bench.sizes.large.linears().items():
        x, w = normal(bench, 257, k), normal(bench, n, k, seed=1)
        whole = F.linear(x, w)
        found[layer] = {m: differing(F.linear(x[:m], w), whole[:m]) for m in ROWS[:-1:3]}
    varies = sum(count for rows in found.values() for count in rows.values())
    return {"differing_elements": found, "varies": varies > 0}


# The small kernels


@section("bits.small", seconds=30)
def small_kernels(bench: Bench) -> Result:
    """Norms, rotation, activations, embedding and logits against the plain NumPy rules."""
    checks: dict[str, bool] = {}
    models = {model.hidden: model for model in bench.sizes.bits}.values()
    for model in models:
        checks |= _check_norms(bench, model) | _check_elementwise(bench, model)
        checks |= _check_rotation(bench, model) | _check_logits(bench, model)
    x = normal(bench, 4, 1024, dtype=torch.float32)
    neighbour = torch.nextafter(x, x.new_full((), float("inf")))
    return {
        "checks": checks,
        "failed": [name for name, equal in checks.items() if not equal],
        "a_last_bit_is_seen": not same_bits(x.cpu(), neighbour.cpu()),
        "passed": all(checks.values()),
    }


def _row_counts(bench: Bench) -> tuple[int, ...]:
    return (bench.sizes.checked,) if bench.smoke else (1, bench.sizes.checked, 600)


def _check_norms(bench: Bench, model: Model) -> dict[str, bool]:
    checks = {}
    weight = normal(bench, model.hidden, seed=1)
    for count in _row_counts(bench):
        some = slice(max(0, count - bench.sizes.checked), count)
        x, residual = (normal(bench, count, model.hidden, seed=s) for s in (2, 3))
        summed = (residual.float() + x.float()).to(x.dtype)
        got = norms.rms_norm(x, weight, model.eps, "scale_rounded", residual=residual)
        expected = reference_native.rms_norm(
            _wide(summed[some]), _wide(weight), model.eps, "scale_rounded", "bfloat16"
        )
        name = f"rms_norm {model.hidden} x {count}"
        checks[name] = same_bits(got[some].float().cpu(), expected)
        checks[f"{name}, residual"] = not differing(residual, summed)
    return checks


def _check_elementwise(bench: Bench, model: Model) -> dict[str, bool]:
    checks = {}
    for count in _row_counts(bench):
        some = slice(max(0, count - bench.sizes.checked), count)
        for factor, what in ((8.0, ""), (2.0**-65, ", subnormal products")):
            joined = normal(bench, count, 2 * model.inner, seed=4) * factor
            gate, up = joined[:, : model.inner], joined[:, model.inner :]
            got = activation.silu_mul(gate, up)
            expected = reference.gated("silu", _wide(gate[some]), _wide(up[some]), "bfloat16")
            equal = same_bits(got[some].float().cpu(), expected)
            checks[f"silu_mul {model.inner} x {count}{what}"] = equal
    table = normal(bench, 1000, model.hidden, seed=5)
    ids = torch.randint(1000, (33,), device=bench.device, generator=bench.generator(6))
    got = embedding.embedding(ids.int(), table)
    checks[f"embedding {model.hidden}"] = not differing(got, table[ids])
    return checks


def _check_rotation(bench: Bench, model: Model) -> dict[str, bool]:
    checks = {}
    heads, kv_heads, dim = model.heads, model.kv_heads, model.head_dim
    weights = (
        [normal(bench, dim, seed=s) for s in (1, 2)] if model.architecture == "qwen3" else None
    )
    angle = np.arange(4096)[:, None] * np.logspace(0, -6, dim // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    for count in _row_counts(bench):
        some = np.arange(max(0, count - bench.sizes.checked), count)
        qkv = normal(bench, count, (heads + 2 * kv_heads) * dim, seed=3)
        rng = np.random.default_rng(count)
        positions = rng.integers(0, 4096, count).astype(np.int32)
        pages = -(-count // PAGE_SIZE) + 1
        slots = rng.permutation(pages * PAGE_SIZE)[:count].astype(np.int32)
        nan = torch.full((pages, kv_heads, PAGE_SIZE, dim), float("nan"), device=bench.device)
        caches = [nan.bfloat16() for _ in "kv"]
        norm = dict(zip(("q_norm", "k_norm"), weights, strict=True)) if weights else {}
        numbers = (torch.from_numpy(a).to(bench.device) for a in (positions, slots, cos, sin))
        got = rope.rotate_and_cache(
            qkv, *numbers, *caches, heads=heads, kv_heads=kv_heads, eps=model.eps, **norm
        )
        rows = _wide(qkv[some]).reshape(len(some), -1, dim)
        q, k, v = np.split(rows, [heads, heads + kv_heads], axis=1)
        if weights:
            q, k = (
                reference_native.rms_norm(x, _wide(w), model.eps, "scale_rounded", "bfloat16")
                for x, w in zip((q, k), weights, strict=True)
            )
        c, s = (table[positions[some]][:, None] for table in (cos, sin))
        q, k = (reference.rope(x, c, s, "bfloat16") for x in (q, k))
        name = f"rotate_and_cache {model.name} x {count}"
        checks[f"{name}, q"] = same_bits(got[some].float().cpu(), q)
        for what, cache, expected in (("k", caches[0], k), ("v", caches[1], v)):
            place = torch.from_numpy(slots[some]).long().to(bench.device)
            written = cache[place // PAGE_SIZE, :, place % PAGE_SIZE]
            checks[f"{name}, {what}"] = same_bits(written.float().cpu(), expected)
            full = int((~cache[:, 0, :, 0].isnan()).sum())
            checks[f"{name}, {what} nowhere else"] = full == count
    return checks


def _check_logits(bench: Bench, model: Model) -> dict[str, bool]:
    checks = {}
    count = 1 if bench.smoke else 3
    x = normal(bench, count, model.vocab, dtype=torch.float32, seed=11) * 4
    x[0, model.vocab // 2] = x[0, 3] = x[0].max() + 1  # a tie
    got, values = logits.summarise(x).cpu().numpy(), x.cpu().numpy()
    name = f"summarise {model.vocab}"
    checks[f"{name}, argmax"] = bool((got[:, 0] == reference_sampling.argmax(values)).all())
    sums = reference_sampling.checksum(values)
    checks[f"{name}, checksum"] = bool((got[:, 1:].view(np.uint64) == sums).all())
    for function in ("softmax", "log_softmax"):
        expected = getattr(reference_native, function)(values)
        ours = getattr(logits, function)(x).cpu()
        checks[f"{function} {model.vocab}"] = same_bits(ours, expected)
    return checks
