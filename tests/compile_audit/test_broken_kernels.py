"""The audit of kernels that are broken on purpose: each rule finds its own, and nothing else."""

from __future__ import annotations

import itertools

import broken_kernels
import pytest

from detinfer.compile_audit.audit import AMD, MOST, audit
from detinfer.compile_audit.rules import RULES
from detinfer.machine import usable_cores

ARCHITECTURES = (AMD, "sm_86", "sm_90", "sm_100")
CASES = [
    (arch, case.name)
    for arch in ARCHITECTURES
    for case in broken_kernels.cases(80 if arch == AMD else int(arch.removeprefix("sm_")))
]


@pytest.fixture(scope="module")
def result():
    return audit(["broken_kernels"], ARCHITECTURES, min(2, usable_cores()))


@pytest.mark.parametrize(("arch", "name"), CASES)
def test_a_kernel_is_flagged_by_the_rule_it_breaks_and_by_no_other(result, arch, name):
    broken = name.split()[0]
    flagged = {one.rule for one in result.findings if (one.arch, one.case) == (arch, name)}
    assert flagged == (set() if broken == "clean" else set(broken.split("+")))


def test_every_rule_has_a_kernel_that_breaks_it():
    assert set(RULES) <= {rule for _, name in CASES for rule in name.split()[0].split("+")}


def test_configurations_of_a_weight_that_cut_k_differently_are_flagged(result):
    (finding,) = [one for one in result.findings if one.rule == "k-order"]
    assert (finding.arch, finding.case) == ("sm_90", "w")
    assert "k16 of bf16" in finding.message
    assert "single products of fp32" in finding.message


def test_one_compilation_serves_all_cases_that_share_it(result):
    assert len(result.checked) + 1 == len(CASES)  # one does not compile
    assert result.compilations < len(CASES)


def test_results_do_not_depend_on_which_worker_was_first(result):
    order = [(ARCHITECTURES.index(one.arch), one.case) for one in result.checked]
    assert order == sorted(order)
    assert all(a.arch != b.arch or a.case <= b.case for a, b in itertools.pairwise(result.findings))


def test_findings_are_single_lines(result):
    assert result.compilations < MOST
    for one in result.findings:
        assert one.message
        assert "\n" not in one.message
