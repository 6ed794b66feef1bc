"""PTX read as chains: what a compiler would have to get wrong, written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from detinfer.compile_audit.cases import Case
from detinfer.compile_audit.compiling import Compiled
from detinfer.compile_audit.machine_code import chains, descriptor_offsets, joined
from detinfer.compile_audit.rules import RULES, chain, contraction, k_step

WGMMA = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%r1, %r2}"
FIRST = "or.b64 %rd10, %rd1, 4611686293305294848;\nor.b64 %rd20, %rd2, 64;\n"
SECOND = "add.s64 %rd11, %rd1, 4611686293305294850;\nadd.s64 %rd21, %rd2, 66;\n"
ONE = f"{WGMMA}, %rd10, %rd20, %p1, 1, 1, 0, 0;\n"
TWO = f"{WGMMA}, %rd11, %rd21, %p1, 1, 1, 0, 0;\n"
LOOP = f"mov.pred %p1, -1;\n$L__BB0_1:\n{FIRST}{SECOND}{ONE}$L__tmp3:\n{TWO}@%p9 bra $L__BB0_1;\n"

MMA = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"


def lengths(ptx):
    return [[len(one.steps) for one in block] for block in chains(ptx)]


def compiled(ptx):
    return Compiled("sm_90", "matmul", ptx, "", "", 32, 0, 0, 0, False, 0.0)


def case(steps=2):
    return Case("", None, {}, {}, mma="wgmma", k_steps=steps)


def test_steps_on_one_accumulator_are_a_chain_whatever_labels_debuggers_need():
    assert lengths(LOOP) == [[2]]
    assert not list(chain(case(), compiled(LOOP)))


def test_a_write_to_the_accumulator_ends_the_chain():
    assert lengths(LOOP.replace("$L__tmp3:", "add.rn.f32 %r2, %r2, %r7;")) == [[1, 1]]


@pytest.mark.parametrize("flag", ["mov.pred %p1, 0;", "setp.ne.s32 %p1, %r8, 0;"])
def test_a_step_that_may_start_afresh_ends_the_chain(flag):
    assert lengths(LOOP.replace("mov.pred %p1, -1;", flag)) == [[1, 1]]


def test_steps_that_are_not_in_ascending_order_are_flagged():
    (message,) = chain(case(), compiled(LOOP.replace(ONE, "").replace(TWO, TWO + ONE)))
    assert message == "1 chains do not take k in ascending order"


def test_descriptors_are_traced_to_one_address():
    (block,) = chains(LOOP)
    assert descriptor_offsets(LOOP, block[0], 1) == [0, 2]
    assert descriptor_offsets(LOOP, block[0], 2) == [0, 2]
    untraced = LOOP.replace("add.s64 %rd11, %rd1", "add.s64 %rd11, %rd7")
    assert descriptor_offsets(untraced, chains(untraced)[0][0], 1) is None


def test_mma_chains_follow_accumulators_through_other_registers():
    ptx = f"""
    {MMA} {{%r1, %r2}}, {{%a}}, {{%b}}, {{%r8, %r9}};
    {MMA} {{%r3, %r4}}, {{%a}}, {{%b}}, {{%r1, %r2}};
    {MMA} {{%r5, %r6}}, {{%a}}, {{%b}}, {{%r8, %r9}};
    """
    assert lengths(ptx) == [[2, 1]]


def test_tensor_memory_accumulators_go_by_address():
    step = "@%p14 tcgen05.mma.cta_group::1.kind::f16 [ %r4 + {} ], %rd1, %rd2, %r1, %p1;\n"
    ptx = "mov.pred %p1, -1;\n" + "".join(step.format(at) for at in (0, 0, 128, 128, 128))
    assert lengths(ptx) == [[2, 3]]


def test_fma_count_as_chains_only_where_they_build_on_each_other():
    chained = "fma.rn.f32 %f2, %f8, %f9, %f1;\nfma.rn.f32 %f3, %f8, %f9, %f2;\n"
    assert lengths(chained) == [[2]]
    assert lengths("fma.rn.f32 %f2, %f8, %f9, %f1;\nfma.rn.f32 %f4, %f8, %f9, %f5;\n") == []


def test_two_accumulators_added_are_seen_through_moves_and_packing():
    start = f"{MMA} {{%r1}}, {{%a}}, {{%b}}, {{%r0}};\n{MMA} {{%r2}}, {{%a}}, {{%b}}, {{%r0}};\n"
    packed = "mov.b64 %rd1, {%r1, %r1};\nmov.b64 %rd2, {%r2, %r2};\n"
    assert len(joined(f"{start}mov.b32 %r3, %r1;\nadd.rn.f32 %r4, %r3, %r2;")) == 1
    assert len(joined(f"{start}{packed}add.rn.f32x2 %rd3, %rd1, %rd2;")) == 1
    assert not joined(f"{start}add.rn.f32 %r4, %r1, %bias;")


@pytest.mark.parametrize(
    ("ptx", "flagged"),
    [
        ("mul.f32 %r1, %r2, %r3;", True),
        ("add.ftz.f32 %r1, %r2, %r3;", True),
        ("sub.f32x2 %rd1, %rd2, %rd3;", True),
        ("fma.rn.f32 %r1, %r2, %r3, %r4;", True),  # no tl.fma in the source
        ("mul.rn.f32 %r1, %r2, %r3;", False),
        ("mul.lo.s32 %r1, %r2, %r3;", False),
    ],
)
def test_contraction_is_told_from_rounded_instructions(ptx, flagged):
    assert bool(list(contraction(replace(case(), mma="none"), compiled(ptx)))) == flagged


@pytest.mark.parametrize(
    ("opcode", "flagged"),
    [
        (MMA, False),
        (MMA.replace("k16", "k8"), True),
        (MMA.replace(".f32", ".f16"), True),
        ("wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16", False),
        ("wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3", True),
        ("tcgen05.mma.cta_group::1.kind::f8f6f4", True),
    ],
)
def test_only_k16_steps_into_binary32_pass(opcode, flagged):
    assert bool(list(k_step(case(), compiled(f"{opcode} {{%r1}};")))) == flagged


@pytest.mark.parametrize(
    "text",
    [
        "atom.global.gpu.acq_rel.add.f32 %r1, [%rd1], %r2;",
        "red.global.add.noftz.bf16x2 [%rd1], %r2;",
        "red.global.add.v4.f32 [%rd1], {%r1, %r2, %r3, %r4};",
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%rd1], [%r1];",
    ],
)
def test_every_spelling_of_a_float_atomic_is_flagged(text):
    assert list(RULES["float-atomics"](case(), compiled(text)))


@pytest.mark.parametrize(
    "text", ["atom.global.add.u32 %r1, [%rd1], 1;", "cvt.rn.f32.s32 %r1, %r2;"]
)
def test_integer_atomics_pass(text):
    assert not list(RULES["float-atomics"](case(), compiled(text)))
