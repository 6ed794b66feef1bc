"""``detinfer doctor --compile-audit``: exit status, table and JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import triton.language as tl

from detinfer import cli
from detinfer.compile_audit import command
from detinfer.compile_audit.audit import MOST, NVIDIA, Result, disagreements
from detinfer.compile_audit.cases import Case
from detinfer.compile_audit.tasks import Checked, Finding, list_jobs, varied
from detinfer.compile_audit.workers import TaskError

FINDING = Finding("spills", "sm_90", "detinfer.compile_audit.cases.norms", "rms [1]", "3 accesses")


def checked(case="rms [1]", order="k16 of bf16", findings=()):
    module = "detinfer.compile_audit.cases.norms"
    return Checked(
        "sm_90", module, case, "rms_kernel", "wgmma", "w", order, 90, 0, 1024, 0.5, findings
    )


@pytest.fixture
def found(monkeypatch):
    """Findings of the audit that the command runs, which compiles nothing."""
    findings: list[Finding] = []

    def audit(modules, architectures, workers, *, full, progress):
        for done in range(3):
            progress(done, 2)
        return Result(
            "3.7.1", 2, (checked(findings=tuple(findings)),), tuple(findings), ("gfx942 left out",)
        )

    monkeypatch.setattr(command, "audit", audit)
    monkeypatch.setattr(command, "lint_kernels", lambda: iter(()))
    return findings


def test_a_clean_audit_exits_with_0_and_says_so(found, capsys):
    assert cli.main(["doctor", "--compile-audit"]) == 0
    out, err = capsys.readouterr()
    assert "no findings" in out
    assert "rms_kernel" in out
    assert "gfx942 left out" in out
    assert "compiled 2 of 2" in err


def test_a_finding_exits_with_1_and_is_one_line(found, capsys):
    found.append(FINDING)
    assert cli.main(["doctor", "--compile-audit"]) == 1
    assert "spills: sm_90 norms, rms [1]: 3 accesses\n" in capsys.readouterr().out


def test_json_holds_every_finding_and_every_case(found, capsys):
    found.append(FINDING)
    assert cli.main(["doctor", "--compile-audit", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert answer["compilations"] == 2
    (finding,) = answer["findings"]
    assert finding["message"] == "3 accesses"
    (case,) = answer["cases"]
    assert (case["case"], case["registers"]) == ("rms [1]", 90)


def test_a_machine_that_cannot_compile_is_status_2_and_one_line(monkeypatch, capsys):
    def no_triton(self, task, given):
        return iter([(given[0], TaskError("ModuleNotFoundError: No module named 'triton'"))])

    monkeypatch.setattr("detinfer.compile_audit.audit.Workers.map", no_triton)
    assert cli.main(["doctor", "--compile-audit"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "No module named 'triton'" in err


def test_only_configurations_of_one_weight_must_agree():
    assert list(disagreements([checked("a"), checked("b")])) == []
    (finding,) = disagreements([checked("a"), checked("b", "k8 of fp32")])
    assert (finding.rule, finding.case) == ("k-order", "w")


def test_two_cases_of_one_name_are_refused(monkeypatch):
    twice = SimpleNamespace(cases=lambda arch: [Case("a", None, {}, {}), Case("a", None, {}, {})])
    monkeypatch.setitem(sys.modules, "twice", twice)
    with pytest.raises(ValueError, match="several are named a"):
        list_jobs(("twice", "sm_90", False))


def test_full_takes_a_case_without_alignment_and_in_the_other_16_bit_type():
    case = Case(
        name="a",
        kernel=None,
        signature={"x": "*bf16", "w": "tensordesc<bf16[64, 64]>", "k": "i32"},
        constants={"T": tl.bfloat16, "KIND": "bf16", "N": 4},
        weight="w",
        aligned=frozenset("xk"),
    )
    assert varied(case, "") is case
    assert varied(case, "unaligned") == replace(case, name="a unaligned", aligned=frozenset())
    twin = varied(case, "fp16")
    assert twin.signature == {"x": "*fp16", "w": "tensordesc<fp16[64, 64]>", "k": "i32"}
    assert twin.constants == {"T": tl.float16, "KIND": "fp16", "N": 4}
    assert (twin.name, twin.dtype, twin.weight) == ("a fp16", "fp16", "w fp16")


@pytest.mark.slow
def test_every_kernel_of_every_launch_table_passes_every_rule(capsys):
    status = cli.main(["doctor", "--compile-audit", "--json"])
    answer = json.loads(capsys.readouterr().out)
    with capsys.disabled():
        print(f"\n{answer['compilations']} compilations in {answer['seconds']} s")
    assert answer["findings"] == []
    assert status == 0
    assert answer["compilations"] <= MOST
    assert {case["arch"] for case in answer["cases"]} >= set(NVIDIA)
