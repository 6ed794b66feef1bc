"""What may not be written in a kernel."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path

import pytest
import triton.language as tl

import detinfer
from detinfer.compile_audit.source_lint import lint, lint_file

KERNELS = sorted((Path(detinfer.__file__).parent / "kernels" / "triton").glob("*.py"))


def kernel(body):
    return f"@triton.jit\ndef f(x, y, N: tl.constexpr):\n{textwrap.indent(body, '    ')}\n"


def messages(source, module="matmul"):
    return [message for _, message in lint(source, module)]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("p = tl.make_block_ptr(x)", "make_block_ptr"),
        ("p = tl.advance(x, 1)", "advance"),
        ("tl.atomic_add(x, y)", "atomic_add"),
        ("z = tl.inline_asm_elementwise('', '', [x])", "inline_asm"),
        ("z = tl.extra.cuda.libdevice.exp(x)", "libdevice"),
        ("z = tl.dot(x, y, z)", "ieee"),
        ('z = tl.dot(x, y, z, input_precision="tf32")', "ieee"),
        ('z += tl.dot(x, y, input_precision="ieee")', "accumulator"),
        ("z = tl.sum(x, 0)", "tl.sum"),
        ("z = tl.sum(tl.reshape(x, (4, 16)), 1)", "tl.sum"),
        ("z = tl.sum(tl.reshape(x, (2, 16)), 1)", "tl.sum"),
        ("z = tl.sum(tl.reshape(x, (N, 2)), axis=N)", "tl.sum"),
        ("z = tl.reduce(x, 0, add)", "tl.reduce"),
        ("z = tl.cumsum(x, 0)", "tl.cumsum"),
        ("z = x.sum(0)", ".sum"),
        ("z = tl.sum(x, 0)  # order-free:", "tl.sum"),  # without a reason
        ("z = tl.exp(x)", "tl.exp"),
        ("z = tl.exp2(x)", "tl.exp2"),
        ("z = tl.math.rsqrt(x)", "rsqrt"),
        ("z = tl.sigmoid(x)", "tl.sigmoid"),
    ],
)
def test_a_banned_line_is_flagged_once(line, word):
    (message,) = messages(kernel(line))
    assert word in message


@pytest.mark.parametrize(
    "line",
    [
        'z = tl.dot(x, y, z, input_precision="ieee")',
        'z = tl.dot(x, y, acc=z, input_precision="ieee")',
        "z = tl.sum(tl.reshape(x, (N, 2, 16)), 1)",
        "z = tl.sum(x, 0)  # order-free: integers",
        "tl.atomic_add(x, y)  # order-free: integers",
        "z = tl.max(x, 0)",
        "z = tl.math.div_rn(x, tl.math.sqrt_rn(y))",
    ],
)
def test_an_allowed_line_is_not(line):
    assert messages(kernel(line)) == []


def test_a_power_of_two_is_approximate_by_contract_in_attention_alone():
    assert messages(kernel("z = tl.exp2(x)"), "attention") == []
    assert messages(kernel("z = tl.exp2(x)"), "activation") != []


@pytest.mark.parametrize(
    "import_", ["from triton.language.extra import libdevice", "import libdevice"]
)
def test_libdevice_is_not_even_imported(import_):
    assert len(messages(import_)) == 1


def test_autotune_is_flagged():
    (message,) = messages("@triton.autotune([])\n" + kernel("pass"))
    assert message == "triton.autotune: a choice by timing"


def test_sums_on_the_host_are_not_a_kernels():
    assert messages("def f(x):\n    return x.sum()") == []


LAUNCH = "def f(x):\n    options = {'num_warps': 4, **launch.options(x.device)}\n"


@pytest.mark.parametrize(
    "options", ["**options(x.device)", "**launch.options(x.device)", "**options"]
)
def test_a_launch_with_the_options_passes(options):
    assert messages(f"{LAUNCH}    kernel[(1,)](x, {options})") == []


@pytest.mark.parametrize("options", ["num_warps=4", "**other", "**launch.OPTIONS"])
def test_a_launch_without_them_is_flagged(options):
    (message,) = messages(f"{LAUNCH}    kernel[(1,)](x, {options})")
    assert message.startswith("launch without **options(device)")


@pytest.mark.parametrize("module", ["matmul", "attention_kernels"])
def test_an_op_with_cases_may_be_launched(module):
    assert messages("def f(x):\n    kernel[(1,)](x, **options(x.device))", module) == []


def test_a_launch_the_audit_would_not_compile_is_flagged():
    (message,) = messages("def f(x):\n    kernel[(1,)](x, **options(x.device))", "convolution")
    assert message.startswith("launches kernels, but compile_audit/cases has no convolution.py")


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_the_projects_kernels_are_clean(path):
    assert lint_file(path) == []


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_a_constant_of_a_kernel_equals_itself(path):
    # Or Triton takes it for changed at the second launch: a NaN does.
    module = importlib.import_module(f"detinfer.kernels.triton.{path.stem}")
    constants = [value for value in vars(module).values() if isinstance(value, tl.constexpr)]
    assert [one for one in constants if one.value != one.value] == []
