"""Each seeded defect is found by the fuzzer, and without it the very same run passes."""

import pytest
from fuzzer import Difference, Failure, World, fuzz
from mutants import MUTANTS, REWRITTEN

STEPS = {"fused": 3000, "modules": 400}  # within which a defect is found


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_defect_is_found(name, monkeypatch):
    mutant = MUTANTS[name]
    world = World(mutant.plan)
    mutant.patch(monkeypatch)
    with pytest.raises(Failure) as caught:
        fuzz(world, STEPS[mutant.plan], shrinking=False)
    assert isinstance(caught.value.error, Difference)  # an answer told, not a crash


@pytest.mark.parametrize("plan", STEPS)
def test_without_a_defect_the_same_run_passes(plan):
    assert fuzz(World(plan), STEPS[plan])["compared"] > 10


@pytest.mark.parametrize("name", REWRITTEN)
def test_an_op_rewritten_without_a_defect_passes(name, monkeypatch):
    mutant = REWRITTEN[name]
    world = World(mutant.plan)
    mutant.patch(monkeypatch)
    assert fuzz(world, STEPS[mutant.plan] // 2)["compared"] > 10
