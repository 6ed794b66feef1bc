"""The bars the project set itself, and a summary that ends a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]

_WIDTH = 150  # characters of a line
_MOST = 10_000  # of the whole summary


@dataclass(frozen=True)
class Bar:
    """A figure and what it must reach.

    Attributes:
        section: that measures it.
        read: the figure in the section's result; None if it was not measured.
        at_least: the least it may be.
        at_most: the most it may be.
    """

    name: str
    section: str
    read: Callable[[Results], float | bool | None]
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, results: dict[str, Results]) -> dict[str, Any]:
        """Figure and verdict: ``pass``, ``fail`` or ``not measured``."""
        value = self.read(results[self.section]) if self.section in results else None
        wanted = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        if value is None:
            verdict = "not measured"
        else:
            good = (self.at_least is None or value >= self.at_least) and (
                self.at_most is None or value <= self.at_most
            )
            verdict = "pass" if good else "fail"
        figure = None if value is None else float(value)
        return {"bar": self.name, "figure": figure, "wanted": wanted, "verdict": verdict}


def _bits(name: str, section: str) -> Bar:
    return Bar(f"bits: {name}", section, lambda r: r["passed"], at_least=1)


def _row(rows: list[Results], key: str, value: int, figure: str) -> float | None:
    return next((row[figure] for row in rows if row[key] == value), None)


BARS = (
    _bits("MMA families agree, groups' order is seen", "bits.mma"),
    _bits("all configurations of each weight", "bits.linear"),
    _bits("norms, rotation, activations, logits", "bits.small"),
    _bits("attention: prompt = chunks = decoded rows", "bits.attention"),
    _bits("engine: one digest a prompt, graphs on = off", "engine.invariance"),
    Bar("linear, M <= 64, x cuBLAS", "perf.linear", lambda r: r["small_m_ratio"], 0.95),
    Bar("linear, M >= 1024, x cuBLAS", "perf.linear", lambda r: r["large_m_ratio"], 0.85),
    Bar("decode attention, x copy", "perf.attention", lambda r: r["decode_of_copy"], 0.85),
    Bar("prefill attention, x SDPA", "perf.attention", lambda r: r["prefill_ratio"], 0.85),
    Bar(
        "step at batch 1, ms",
        "slowdown.decode",
        lambda r: _row(r["rows"], "batch", 1, "deterministic_ms"),
        at_most=5.4,
    ),
    Bar("slowdown, decode", "slowdown.decode", lambda r: r["slowdown"], at_most=1.10),
    Bar(
        "slowdown, 1,000 sequences",
        "slowdown.sequences",
        lambda r: _row(r["rows"], "max_num_seqs", 1000, "slowdown"),
        at_most=1.10,
    ),
    Bar("slowdown, 1024/1024", "slowdown.throughput", lambda r: r["slowdown"], at_most=1.10),
    Bar(
        "1,000 sequences, s",
        "slowdown.sequences",
        lambda r: _row(r["rows"], "max_num_seqs", 1000, "deterministic_median_s"),
        at_most=26,
    ),
)


def judge(results: dict[str, Results]) -> list[dict[str, Any]]:
    """Every bar with its figure and verdict."""
    return [bar.judge(results) for bar in BARS]


def summary(document: dict[str, Any]) -> str:
    """Sections, the figures behind the bars, then the bars, in few enough characters for a log."""
    sections = document["sections"]
    results = {name: one["result"] for name, one in sections.items() if one["status"] == "done"}
    detail = [line[:_WIDTH] for line in _details(results)]
    late = len(document.get("compiled_late", ()))
    total = f"{late} kernels compiled late; total {document['total_seconds']:.0f} s"
    end = [*_sections(sections), "", *_bars(document), total]
    room = _MOST - sum(len(line) + 1 for line in end)
    while sum(len(line) + 1 for line in detail) > room:
        detail.pop()
    return "\n".join([*detail, "", *end])


def _bars(document: dict[str, Any]) -> Iterator[str]:
    if document["identity"]["smoke"]:
        yield "smoke run: tiny shapes; bars are not judged"
        return
    for one in document["bars"]:
        figure = "-" if one["figure"] is None else f"{one['figure']:.3f}"
        yield f"{one['verdict']:12} {one['bar']:48} {figure:>9}  {one['wanted']}"


def _sections(sections: dict[str, Any]) -> Iterator[str]:
    for name, one in sections.items():
        reason = str(one.get("reason", "")).strip().rpartition("\n")[2]
        yield f"{name:22} {one['status']:8} {one.get('seconds', 0):7.1f} s  {reason}"[:_WIDTH]


def _details(results: dict[str, Results]) -> Iterator[str]:
    """Yield the most telling lines of each section, the most telling sections first."""
    if device := results.get("device"):
        yield (
            f"{device['gpu']}: copy {device['copy_gb_s']:.0f} GB/s, read {device['read_gb_s']:.0f} "
            f"GB/s, matmul {device['matmul_tflop_s']:.0f} TFLOP/s; SDPA: "
            f"{'; '.join(device['sdpa_prefill_kernels'])[:60]}"
        )
    if found := results.get("bits.mma"):
        unlike = found["elements_unlike_the_model"]
        yield f"mma: unequal {found['unequal'][:3]}, unlike the model {unlike}"
    if found := results.get("bits.linear"):
        for one in found["weights"]:
            for wrong in (*one["unequal"], *one["failed"]):
                yield f"linear {one['weight']}: {wrong}"
    if found := results.get("bits.small"):
        yield from (f"small: {name}" for name in found["failed"])
    if found := results.get("bits.attention"):
        for name, one in found["models"].items():
            yield from (f"attention {name}: {w}" for w in (*one["unequal"], *one["failed"]))
    if found := results.get("engine.invariance"):
        yield f"engine: digests {found['digests']}, fast {found['fast_mode_digests']}"
    for name in ("slowdown.decode", "slowdown.other"):
        for row in results.get(name, {}).get("rows", ()):
            yield (
                f"{name} batch {row['batch']}: {row['deterministic_ms']:.2f} ms, "
                f"fast {row['fast_ms']:.2f} ms; on the device "
                f"{row['deterministic_device_ms'] or 0:.2f}, {row['fast_device_ms'] or 0:.2f} ms"
            )
    for row in results.get("slowdown.drafts", {}).get("rows", ()):
        equal = "" if row["equal_digests"] else ", DIGESTS DIFFER"
        yield f"drafts, {row['text']}: {row['on_ms']:.2f} ms, {row['speedup']:.2f}x{equal}"
    for row in results.get("slowdown.sequences", {}).get("rows", ()):
        yield (
            f"sequences, {row['max_num_seqs']} at once: {row['deterministic_median_s']:.1f} s, "
            f"fast {row['fast_median_s']:.1f} s"
        )
    for kind in ("decode", "prefill"):
        for row in results.get("perf.attention", {}).get(kind, ()):
            size = row.get("keys", row.get("tokens"))
            figure = row.get("of_copy") if kind == "decode" else row["ratio"]
            yield f"{kind} {row['sequences']} x {size}: {row['us']:.0f} us, {figure or 0:.2f}"
    for row in results.get("perf.linear", {}).get("rows", ()):
        if row["m"] in (1, 16, 64, 1024, 8192):
            tried = [one for one in row.get("candidates", ()) if "us" in one]
            best = min(tried, key=lambda one: one["us"], default=None)
            other = f"; {best['config']} {best['us']:.0f}" if best else ""
            yield (
                f"{row['weight']} M={row['m']}: {row['us']:.0f} us, cuBLAS {row['cublas_us']:.0f}, "
                f"x{row['ratio']:.2f} [{row['config']}{other}]"
            )
    for row in results.get("perf.small", {}).get("rows", ()):
        yield f"{row['kernel']} x {row['rows']}: {row['us']:.1f} us, {row['gb_s']:.0f} GB/s"
    if found := results.get("compile"):
        yield f"compiled {found['kernels']} kernels; errors {found['errors'][:2]}"
