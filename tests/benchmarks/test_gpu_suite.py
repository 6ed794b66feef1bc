"""The GPU suite's own code: a smoke run through the interpreter, and how it keeps results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.interpreter import install

install()

from benchmarks.gpu import (  # noqa: E402
    attention_bits,
    bits,
    compiling,
    drafts,
    engine,
    kernel_speed,
    linear_speed,
    report,
)
from benchmarks.gpu import bench as benching  # noqa: E402
from benchmarks.gpu.bench import SECTIONS, Bench, Section, Suite, choose  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]

MODULES = (attention_bits, bits, compiling, drafts, engine, kernel_speed, linear_speed)
CPU = torch.device("cpu")
IDENTITY = {"commit": "abc", "sources": "def", "smoke": True, "gpu": None}


def smoke(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--smoke", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run(path: Path, *sections: Section, identity: Any = IDENTITY, budget: float = 100) -> Any:
    suite = Suite(path, identity, {})
    suite.run(Bench(CPU, smoke=True), sections, budget, lambda line: None)
    return json.loads(path.read_text())["sections"]


@pytest.mark.slow
def test_every_section_of_a_smoke_run_has_a_result(tmp_path):
    printed = smoke("--out", str(tmp_path), "--budget", "1200")
    document = json.loads((tmp_path / "gpu_suite.json").read_text())
    sections = document["sections"]
    reasons = {name: one.get("reason") for name, one in sections.items()}
    assert {one["status"] for one in sections.values()} == {"done"}, reasons
    assert list(sections) == list(benching.ORDER)
    assert document["smoke"] is True
    assert document["bars"] == []
    results = {name: one["result"] for name, one in sections.items()}
    for name in ("bits.mma", "bits.linear", "bits.small", "bits.attention", "engine.invariance"):
        assert results[name]["passed"] is True, results[name]
    assert results["compile"]["kernels"] > 0
    assert not results["compile"]["errors"]

    # Each negative control saw what it must see.
    assert results["bits.mma"]["groups_swapped_differ"] > 0
    assert results["bits.mma"]["inside_a_group_differ"] == 0
    assert results["bits.linear"]["sums_of_halves_differ"] > 0
    assert results["bits.small"]["a_last_bit_is_seen"]
    for one in results["bits.attention"]["models"].values():
        assert one["blocks_exchanged_differ"] > 0
    assert results["engine.invariance"]["a_changed_bit_is_seen"]
    assert results["engine.invariance"]["fast_mode_digests"]
    assert results["slowdown.drafts"]["accepted"] > 0
    assert all(row["equal_digests"] for row in results["slowdown.drafts"]["rows"])

    assert "smoke run" in printed
    assert len(printed) < 12_000
    again = smoke("--out", str(tmp_path), "--only", "bits")
    assert again.count("kept from before") == 2 + sum(n.startswith("bits") for n in SECTIONS)


def test_a_section_of_the_same_sources_is_not_run_again(tmp_path):
    runs: list[int] = []
    one = Section("one", 1, lambda bench: {"runs": runs.append(1) or len(runs)})
    path = tmp_path / "results.json"
    assert run(path, one)["one"]["result"] == {"runs": 1}
    assert run(path, one)["one"]["result"] == {"runs": 1}
    other = run(path, one, identity={**IDENTITY, "sources": "changed"})
    assert other["one"]["result"] == {"runs": 2}


def test_a_failing_section_is_recorded_and_the_suite_goes_on(tmp_path):
    def fail(bench):
        raise RuntimeError("no such luck")

    sections = (Section("bad", 1, fail), Section("good", 1, lambda bench: {"figure": 2.5}))
    done = run(tmp_path / "results.json", *sections)
    assert done["bad"]["status"] == "error"
    assert "no such luck" in done["bad"]["reason"]
    assert "in fail" in done["bad"]["reason"]
    assert done["good"] == {"status": "done", "result": {"figure": 2.5}, "seconds": 0.0}


def test_a_result_that_is_no_json_is_an_error_of_its_section(tmp_path):
    done = run(tmp_path / "results.json", Section("nan", 1, lambda bench: {"x": float("nan")}))
    assert done["nan"]["status"] == "error"


def test_a_section_that_does_not_fit_in_the_budget_is_skipped_with_its_reason(tmp_path):
    sections = (Section("long", 90, lambda bench: {}), Section("short", 1, lambda bench: {}))
    done = run(tmp_path / "results.json", *sections, budget=30)
    assert done["long"]["status"] == "skipped"
    assert "needs up to 90 s" in done["long"]["reason"]
    assert done["short"]["status"] == "done"


def test_every_module_registers_its_sections():
    owners = {one.run.__module__ for one in SECTIONS.values()}
    assert owners == {module.__name__ for module in MODULES} | {"benchmarks.gpu.device"}
    assert set(SECTIONS) == set(benching.ORDER)


def test_sections_are_chosen_by_group_prefix_or_name():
    groups = {"a": ("bits",)}
    names = [one.name for one in choose(["a"], groups)]
    assert names == ["device", "compile", *(n for n in benching.ORDER if n.startswith("bits."))]
    assert [one.name for one in choose(["bits.mma"], groups)][2:] == ["bits.mma"]
    assert [one.name for one in choose([], groups)] == list(benching.ORDER)
    with pytest.raises(ValueError, match="got 'nothing'"):
        choose(["nothing"], groups)


def test_one_flipped_bit_and_nothing_else_counts_as_a_difference():
    a = torch.tensor([1.0, -0.0, float("nan"), 3.0])
    b = a.clone()
    b[2] = -b[2]  # another NaN
    assert bits.differing(a, b) == 0
    b[1] = 0.0
    b.view(torch.int32)[3] += 1
    assert bits.differing(a, b) == 2


def test_a_launch_that_fails_is_noted_and_hides_no_other():
    found = bits.Comparisons()
    expected = torch.ones(2)

    def fail() -> torch.Tensor:
        raise ValueError("does not launch")

    found.check("bad", fail, expected)
    found.check("good", lambda: expected, expected)
    found.check("other", lambda: expected * 2, expected)
    assert found.failed == ["bad: does not launch"]
    assert found.unequal == ["other: 2 of 2 elements"]
    assert found.count == 3


def test_geometric_means_take_the_rows_asked_for():
    rows = [
        {"m": 1, "us": 2.0, "cublas_us": 1.0, "candidates": [{"us": 1.0}, {"error": "no"}]},
        {"m": 64, "us": 1.0, "cublas_us": 2.0},
        {"m": 1024, "us": 1.0, "cublas_us": 3.0},
    ]
    mean = linear_speed._geometric_mean
    assert mean(rows, lambda m: m <= 64) == pytest.approx(1.0)
    assert mean(rows, lambda m: m <= 64, best=True) == pytest.approx(2**0.5)
    assert mean(rows, lambda m: m > 5000) is None


def test_bars_say_pass_fail_or_not_measured():
    results = {
        "perf.linear": {"small_m_ratio": 0.96, "large_m_ratio": None},
        "slowdown.decode": {"rows": [{"batch": 1, "deterministic_ms": 6.0}], "slowdown": 1.05},
        "bits.mma": {"passed": False},
    }
    verdicts = {one["bar"]: one["verdict"] for one in report.judge(results)}
    assert verdicts["linear, M <= 64, x cuBLAS"] == "pass"
    assert verdicts["linear, M >= 1024, x cuBLAS"] == "not measured"
    assert verdicts["step at batch 1, ms"] == "fail"
    assert verdicts["slowdown, decode"] == "pass"
    assert verdicts["bits: MMA families agree, groups' order is seen"] == "fail"
    assert verdicts["prefill attention, x SDPA"] == "not measured"


def test_a_summary_stays_short_and_keeps_the_bars():
    rows = [
        {"weight": f"w{i}", "m": 1, "us": 1.0, "cublas_us": 1.0, "ratio": 1.0, "config": "c" * 60}
        for i in range(500)
    ]
    linear = {"rows": rows, "small_m_ratio": 1.0, "large_m_ratio": 1.0}
    document = {
        "identity": {**IDENTITY, "smoke": False},
        "sections": {"perf.linear": {"status": "done", "result": linear, "seconds": 1.0}},
        "bars": report.judge({"perf.linear": linear}),
        "total_seconds": 12.0,
    }
    text = report.summary(document)
    assert len(text) < 12_000
    assert "pass         linear, M <= 64, x cuBLAS" in text
    assert text.endswith("total 12 s")
