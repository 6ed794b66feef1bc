"""A launch starts early exactly where its kernel waits for the one before it."""

from __future__ import annotations

import early_launches
import pytest

from detinfer.compile_audit.workers import Workers


def launched(arch, folder):
    with Workers(1, folder) as pool:
        ((_, found),) = pool.map(early_launches.launches, [arch])
    if isinstance(found, Exception):
        raise found
    return found


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_what_starts_early_waits_and_nothing_else_does(arch, tmp_path):
    found = launched(arch, tmp_path)
    assert [one for one in found if one[1] != one[2]] == []
    early = {name for name, starts, _ in found if starts}
    late = {name for name, starts, _ in found if not starts}
    if arch < 90:
        assert not early
    else:
        assert {"attend_kernel", "merge_kernel", "rms_norm_kernel", "gated_kernel"} <= early
        assert late == {"linear_tma"}  # so that both kinds were looked at
