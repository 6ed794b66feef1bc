"""Seeded defects on a model in quantised blocks: the packed kernels' own, and all others.

Of the packed kernels' those that depend on the load are here; tests/kernels/ finds every one.
"""

import tempfile
from pathlib import Path

import pytest
from fuzzer import Difference, Failure, World, fuzz
from hunts import STEPS
from kernels_anew import packed_anew
from mutants import MUTANTS
from packed_defects import DEFECTS
from test_check_mutants import divergences, make
from tiny_runner import TinyModelRunner

from detinfer.kernels.constants import BLOCK_FORMATS
from detinfer.kernels.cpu.packed import linear as packed

pytestmark = pytest.mark.slow  # compiles kernels, and plays for long

MODEL = "long-packed"
TILES = ("one_row_scales_its_offset_first", "one_row_has_twice_the_segments")
ROWS = ("several_rows_have_groups_of_64", "rows_of_a_smaller_tile_change_places")
# Whatever the weights are: defects of sampling, batches, pages, and of ops that call ours.
OTHERS = [name for name, mutant in MUTANTS.items() if mutant.hunt == "fuzz"]


def put_in(name, patch):
    """Compile a defect into the model: its Q4_1 tiles, or what the modules call."""
    with tempfile.TemporaryDirectory() as folder:
        anew = packed_anew(Path(folder), DEFECTS[name].edits)
        if name in ROWS:
            patch.setattr(packed, "linear", anew.linear)
            return
        tile, changed = anew.tile_pointer("Q4_1"), 0
    for module in TinyModelRunner(1, model=MODEL).model.modules():
        weight = getattr(getattr(module, "leaf", None), "packed", None)
        if getattr(weight, "storage", None) == "Q4_1":
            patch.setattr(weight, "tile", tile)
            changed += 1
    assert changed > 1


def hunt(plan, model=MODEL):
    """As ``hunts.HUNTS["fuzz"]``, on a model in blocks."""
    try:
        return fuzz(World(plan, model), STEPS[plan], shrinking=False)["compared"]
    except Failure as failure:
        raise failure.error from None


def test_the_model_has_blocks_of_several_formats():
    modules = TinyModelRunner(1, model=MODEL).model.modules()
    found = {m.leaf.packed.storage for m in modules if hasattr(m, "leaf")}
    assert len(found & BLOCK_FORMATS.keys()) == 5


@pytest.mark.parametrize(
    ("name", "plan"),
    [*((n, p) for n in TILES for p in ("fused", "modules")), *((n, "modules") for n in ROWS)],
)
def test_the_fuzzer_finds_a_defect_of_the_packed_kernels(name, plan, monkeypatch):
    put_in(name, monkeypatch)
    with pytest.raises(Difference):
        hunt(plan)


@pytest.mark.parametrize("name", [*TILES, *ROWS])
def test_detinfer_check_finds_a_defect_of_the_packed_kernels(name, monkeypatch):
    check = make("modules", MODEL)
    put_in(name, monkeypatch)
    assert divergences(check)


@pytest.mark.parametrize("model", [MODEL, "packed"])
@pytest.mark.parametrize("plan", ["fused", "modules"])
def test_without_a_defect_the_same_hunt_passes(plan, model):
    assert hunt(plan, model) >= 10


def test_nor_does_detinfer_check_find_one():
    assert not divergences(make("modules", MODEL), loads=6)
    assert not divergences(make("fused", MODEL), loads=30)


@pytest.mark.parametrize("name", OTHERS)
def test_the_fuzzer_finds_other_defects_on_weights_in_blocks(name, monkeypatch):
    mutant = MUTANTS[name]
    mutant.patch(monkeypatch)
    with pytest.raises(Difference):
        hunt(mutant.plan, "packed")  # its window is shorter than the requests
