"""Seeded defects of the packed kernels, one or more for each choice that they make (rule 1q).

Each is an edit of real source, and names the tests that find it. What depends on the load is found
by the fuzzer and by ``detinfer check`` too: tests/invariance/packed_mutants.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernels_anew import Edit

AVX2, PLAIN = ("avx2", "fma"), ()


@dataclass(frozen=True)
class Defect:
    """A defect.

    Attributes:
        edits: of the packed kernels' source.
        found_by: what must fail, of tests/kernels/test_cpu_packed.py, and what it is given.
        features: of the CPU whose code has it; None for this one's.
    """

    edits: tuple[Edit, ...]
    found_by: tuple[tuple[str, dict[str, Any]], ...]
    features: tuple[str, ...] | None = None


def _shapes(name: str) -> tuple[str, dict[str, Any]]:
    return "test_linear_equals_the_reference_at_every_depth_and_width", {"name": name}


def _rows(name: str, k: int = 512) -> tuple[str, dict[str, Any]]:
    return "test_linear_equals_the_reference_at_every_row_count", {"name": name, "k": k}


def _extremes(name: str, fill: int = 0xFF) -> tuple[str, dict[str, Any]]:
    return "test_the_largest_integers_do_not_saturate", {"name": name, "fill": fill}


_TABLE = ("test_rows_of_the_weight_are_the_references", {"name": "Q5_1"})
_LARGE_STEP = ("test_no_row_of_a_large_step_is_lost", {})
_HALVES = ("test_a_value_halfway_between_two_integers_is_quantised_as_the_reference_does", {})
_EDGES = ("test_a_row_from_the_edges_of_binary32_equals_the_reference", {})

_OFFSET = "        if offset is not None:\n            chain = e.fma("
_GROUP_CALL = "_quantise_group(x + group * 128, record + group * stride)"

DEFECTS = {
    # Panels.
    "every_other_panel_is_the_first": Defect(
        (("linear.py", "w + panel * size,", "w + panel % 2 * size,"),), (_shapes("Q4_1"),)
    ),
    "last_panel_ends_at_whole_vectors": Defect(
        (
            (
                "linear.py",
                "min(PANEL, n - panel * PANEL)",
                "min(PANEL, (n - panel * PANEL) // 8 * 8)",
            ),
        ),
        (_shapes("Q4_1"), _LARGE_STEP),
    ),
    "heads_of_four_blocks": Defect(
        (
            (
                "block.py",
                "before = b.lshr(number, const64(3))",
                "before = b.lshr(number, const64(2))",
            ),
        ),
        (_shapes("Q4_K"),),
    ),
    # Accumulators, and what order they are added in.
    "scaled_before_it_is_scaled_by_dx": Defect(
        (
            ("tile.py", "factor = e.mul(scale, records.spread(r, DX, F32))", "factor = scale"),
            (
                "tile.py",
                "chain = e.fma(b.sitofp(integer, e.f32), factor, chain)",
                "chain = e.fma(e.mul(b.sitofp(integer, e.f32), factor), "
                "records.spread(r, DX, F32), chain)",
            ),
        ),
        (_shapes("Q4_0"), _rows("Q4_0")),
    ),
    "offset_before_the_integer": Defect(
        (
            ("tile.py", _OFFSET, _OFFSET.replace("if offset", "if False and offset")),
            (
                "tile.py",
                "        for scale, integer in zip(scales,",
                _OFFSET
                + "offset, records.spread(r, SCALED_SUM, F32), chain)\n"
                + "        for scale, integer in zip(scales,",
            ),
        ),
        (_shapes("Q4_1"), _rows("Q4_1")),
    ),
    "two_groups_summed_before_they_are_scaled": Defect(
        (
            (
                "tile.py",
                "zip(scales, integers[r, v], strict=True)",
                "zip(scales[:1], [b.add(*integers[r, v])], strict=True)",
            ),
        ),
        (_shapes("Q6_K"),),
    ),
    "segments_added_first_to_middle": Defect(
        (
            (
                "tile.py",
                "zip(sums[::2], sums[1::2], strict=True)",
                "zip(sums[: len(sums) // 2], sums[len(sums) // 2 :], strict=True)",
            ),
        ),
        (_shapes("Q8_0"), _rows("Q8_0", 768)),
    ),
    # The number of rows: what one row does, and how rows share a tile.
    "one_row_scales_its_offset_first": Defect(
        (
            (
                "tile.py",
                _OFFSET,
                "        if offset is not None and rows == 1:\n"
                "            first, last = (records.word(r, SUMS + i) for i in (0, 4))\n"
                "            total = e.splat(b.sitofp(b.neg(b.add(first, last)), F32))\n"
                "            factor = e.mul(offset, records.spread(r, DX, F32))\n"
                "            chain = e.fma(factor, total, chain)\n"
                "        elif offset is not None:\n"
                "            chain = e.fma(",
            ),
        ),
        (_rows("Q4_1"),),
    ),
    "one_row_has_twice_the_segments": Defect(
        (
            (
                "tile.py",
                "        count = b.udiv(blocks, segments)\n",
                "        few = b.icmp_signed('<', segments, const64(8))\n"
                "        even = b.icmp_signed('==', b.urem(blocks, b.mul(segments, const64(2))), "
                "const64(0))\n"
                "        one = b.and_(b.icmp_signed('==', m, const64(1)), b.and_(few, even))\n"
                "        segments = b.select(one, b.mul(segments, const64(2)), segments)\n"
                "        count = b.udiv(blocks, segments)\n",
            ),
        ),
        (_rows("Q4_1", 768),),
    ),
    "rows_of_a_smaller_tile_change_places": Defect(
        (
            (
                "rows.py",
                "row % TILE_ROWS * RECORD",
                "(stride // RECORD - 1 - row % TILE_ROWS if stride < TILE_ROWS * RECORD and m > 6 "
                "else row % TILE_ROWS) * RECORD",
            ),
        ),
        (_rows("Q8_0"),),
    ),
    "last_tile_of_a_block_of_rows_is_lost": Defect(
        (("linear.py", "(share + TILE_ROWS - 1) // TILE_ROWS", "share // TILE_ROWS"),),
        (_LARGE_STEP,),
    ),
    # How a row is quantised.
    "several_rows_have_groups_of_64": Defect(
        (
            ("rows.py", "def _group(b, x, record):", "def _group(b, x, other, record):"),
            (
                "rows.py",
                "    finite = b.icmp_unsigned(",
                "    for i in (0, LANES):\n"
                "        more = b.and_(e.bits(e.load(other, const64(i))), e.int32(0x7FFFFFFF))\n"
                "        more = _reduce(b, 'umax', more)\n"
                "        largest = b.select(b.icmp_unsigned('<', largest, more), more, largest)\n"
                "    finite = b.icmp_unsigned(",
            ),
            (
                "rows.py",
                "types.void, [ADDRESS, ADDRESS], _group",
                "types.void, [ADDRESS] * 3, _group",
            ),
            (
                "rows.py",
                _GROUP_CALL,
                "other = group ^ 1 if m > 1 and group ^ 1 < count else group\n"
                "        at, beside = x + group * 128, x + other * 128\n"
                "        _quantise_group(at, beside, record + group * stride)",
            ),
        ),
        (_rows("Q8_0"),),
    ),
    "halves_are_rounded_up": Defect(
        (
            (
                "rows.py",
                "q = b.and_(b.sub(rounded, e.bits(e.const(MAGIC))), live)",
                "up = e.add(e.mul(v, factor), e.const(128.5))\n"
                "        q = b.and_(b.sub(b.fptosi(up, e.i32), e.int32(128)), live)",
            ),
        ),
        (_HALVES,),
    ),
    "divided_by_dx": Defect(
        (
            (
                "rows.py",
                "factor = e.splat(one.div(one.const(127.0), a))",
                "factor = e.splat(one.div(a, one.const(127.0)))",
            ),
            (
                "rows.py",
                "e.add(e.mul(v, factor), e.const(MAGIC))",
                "e.add(e.div(v, factor), e.const(MAGIC))",
            ),
        ),
        (_HALVES,),
    ),
    "zero_at_the_bound_too": Defect(
        (("rows.py", 'zero = b.icmp_unsigned("<"', 'zero = b.icmp_unsigned("<="'),), (_EDGES,)
    ),
    "dx_times_the_reciprocal": Defect(
        (("rows.py", "one.div(a, one.const(127.0)))", "one.mul(a, one.const(1 / 127)))"),),
        (_shapes("Q4_0"),),
    ),
    # Instruction sets.
    "signs_left_to_maddubs": Defect(
        (("dot.py", "self.signed = bits == 8", "self.signed = False"),),
        (_extremes("Q8_0", 0x7F),),
        AVX2,
    ),
    "one_more_sum_than_16_bits_hold": Defect(
        (("dot.py", "self.room = max(1, ", "self.room = 1 + max(1, "),), (_extremes("Q6_K"),), AVX2
    ),
    "one_more_sum_than_16_bits_hold_anywhere": Defect(
        (("dot.py", "self.room = max(1, ", "self.room = 1 + max(1, "),), (_extremes("Q6_K"),), PLAIN
    ),
    "words_widened_without_their_sign": Defect(
        (
            (
                "dot.py",
                "parts += [b.ashr(w, sixteen) for w in words]",
                "parts += [b.lshr(w, sixteen) for w in words]",
            ),
        ),
        (_shapes("Q4_0"),),
        PLAIN,
    ),
    "integers_through_sixteen_bits_of_a_float": Defect(
        (
            (
                "tile.py",
                "chain = e.fma(b.sitofp(integer, e.f32), factor, chain)",
                "number = e.as_float(b.and_(e.bits(b.sitofp(integer, e.f32)), e.int32(-256)))\n"
                "            chain = e.fma(number, factor, chain)",
            ),
        ),
        (_rows("Q8_0"),),
    ),
    # Scales.
    "small_scales_are_flushed": Defect(
        (
            (
                "block.py",
                "        return self.e.widen_half(self._load(self.halves, 0, number, I16))",
                "        raw = self._load(self.halves, 0, number, I16)\n"
                "        kept = self.b.and_(raw, ir.Constant(raw.type, 0x7FFF if self.e.lanes == 1 "
                "else [0x7FFF] * self.e.lanes))\n"
                "        normal = self.b.icmp_unsigned('>=', kept, ir.Constant(raw.type, 0x400 if "
                "self.e.lanes == 1 else [0x400] * self.e.lanes))\n"
                "        zero = ir.Constant(raw.type, None)\n"
                "        return self.e.widen_half(self.b.select(normal, raw, zero))",
            ),
        ),
        (_shapes("Q4_0"), _TABLE),
    ),
    "offsets_are_added": Defect(
        (("block.py", "return self.e.neg(self.e.mul(", "return (self.e.mul("),), (_shapes("Q4_K"),)
    ),
    # Rows of the weight.
    "a_row_from_the_blocks_other_half": Defect(
        (("embedding.py", "_integers(b, block, half), ir", "_integers(b, block, 1 - half), ir"),),
        (_TABLE,),
    ),
}
