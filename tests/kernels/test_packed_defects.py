"""Each seeded defect of the packed kernels fails the tests it names; a copy without it passes."""

from __future__ import annotations

import pytest
import test_cpu_packed
from kernels_anew import packed_anew
from packed_defects import AVX2, DEFECTS, PLAIN

pytestmark = pytest.mark.slow  # compiles kernels for each


@pytest.mark.parametrize("name", DEFECTS)
def test_a_seeded_defect_is_found(name, tmp_path, monkeypatch):
    defect = DEFECTS[name]
    anew = packed_anew(tmp_path, defect.edits, defect.features)
    monkeypatch.setattr(test_cpu_packed, "packed", anew)
    for test, given in defect.found_by:
        with pytest.raises(AssertionError):
            getattr(test_cpu_packed, test)(**given)


@pytest.mark.parametrize("features", [None, AVX2, PLAIN], ids=["own", "AVX2", "plain"])
def test_without_a_defect_the_same_tests_pass(features, tmp_path, monkeypatch):
    """Of each test once; of code for this CPU the callers are compiled anew too."""
    monkeypatch.setattr(test_cpu_packed, "packed", packed_anew(tmp_path, (), features))
    defects = [one for one in DEFECTS.values() if one.features == features]
    runs = {test: given for one in defects for test, given in one.found_by}
    for test, given in runs.items():
        getattr(test_cpu_packed, test)(**given)


def test_an_edit_that_fits_nothing_is_told(tmp_path):
    with pytest.raises(AssertionError, match=r"is 0 times in kernels/cpu/packed/tile.py"):
        packed_anew(tmp_path, [("tile.py", "no such line", "")])
