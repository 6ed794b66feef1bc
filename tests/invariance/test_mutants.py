"""Each seeded defect is found by name, and without it the very same hunt passes."""

import more_mutants  # noqa: F401  (registers its own)
import pytest
from fuzzer import Difference, World, fuzz
from hunts import HUNTS, STEPS
from mutants import MUTANTS, REWRITTEN


@pytest.mark.parametrize("name", MUTANTS)
def test_a_seeded_defect_is_found(name, monkeypatch):
    mutant = MUTANTS[name]
    mutant.patch(monkeypatch)
    with pytest.raises(Difference):
        HUNTS[mutant.hunt](mutant.plan)


@pytest.mark.parametrize(("hunt", "plan"), sorted({(m.hunt, m.plan) for m in MUTANTS.values()}))
def test_without_a_defect_the_same_hunt_passes(hunt, plan):
    assert HUNTS[hunt](plan) >= 10


@pytest.mark.parametrize("name", REWRITTEN)
def test_an_op_rewritten_without_a_defect_passes(name, monkeypatch):
    mutant = REWRITTEN[name]
    world = World(mutant.plan)
    mutant.patch(monkeypatch)
    assert fuzz(world, STEPS[mutant.plan] // 2)["compared"] > 10
