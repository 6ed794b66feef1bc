"""The compiled step of a recursive model: the reference's bits, in every batch, by any threads."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_anew import step_anew
from recursive_models import CONFIGS, boards_of, reference_model, weights_of

from detinfer.errors import ConfigError
from detinfer.kernels.cpu import recursive as kernel
from detinfer.recursive.compiled_step import CompiledStep
from detinfer.recursive.model import RecursiveModel
from detinfer.recursive.tasks import TASKS
from detinfer.testing import assert_same_bits, same_bits

COMPILED = {name: config for name, config in CONFIGS.items() if config.mixer != "mlp"}
UNITS = CONFIGS["units"]


def compiled(config):
    units = TASKS[config.task].units if config.mixer == "units" else None
    return CompiledStep(config, weights_of(config), units)


def fresh(config, count):
    """States that differ from puzzle to puzzle."""
    random = np.random.default_rng(5)
    shape = (count, config.prefix + config.cells, config.hidden)
    y, z = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    return y, z


@pytest.mark.parametrize("config", COMPILED.values(), ids=COMPILED)
def test_every_batch_and_team_gives_the_references_bits(config):
    step, boards, (y0, z0) = compiled(config), boards_of(config, 8), fresh(config, 8)
    oracle = reference_model(config, weights_of(config))
    expected = [oracle.step(*one) for one in zip(boards, y0, z0, strict=True)]
    for count, threads in ((1, 1), (1, 3), (2, 2), (3, 2), (8, 1), (8, 3)):
        order = np.random.default_rng(count).permutation(8)[:count]
        y, z = y0[order], z0[order]
        grids, q = step(threads, boards[order], y, z)
        for i, puzzle in enumerate(order):
            answer, latent, logits, verdict = expected[puzzle]
            assert_same_bits(y[i], answer)
            assert_same_bits(z[i], latent)
            assert_same_bits(q[i : i + 1], np.array([verdict]))
            assert np.array_equal(grids[i], logits.argmax(-1))


def test_a_sum_whose_order_follows_the_batch_is_found(monkeypatch):
    right = "latent[j] = latent[j] + (answer[j] + given[j])"
    other = "(latent[j] + answer[j]) + given[j] if first else"
    anew = step_anew((right, right.replace("= ", f"= {other} ")), module=kernel)
    monkeypatch.setattr(kernel, "step", anew.step)
    step, boards, (y0, z0) = compiled(UNITS), boards_of(UNITS, 3), fresh(UNITS, 3)
    alone, together = (y0[:1].copy(), z0[:1].copy()), (y0.copy(), z0.copy())
    step(2, boards[:1], *alone)
    step(2, boards, *together)
    assert not same_bits(alone[0][0], together[0][0])


def test_logits_that_are_not_finite_have_no_answer():
    step, (y, z) = compiled(UNITS), fresh(UNITS, 2)
    z[1, 0, 0] = np.nan
    grids, q = step(1, boards_of(UNITS, 2), y, z)
    assert (grids[1] == -1).all()
    assert np.isnan(q[1])
    assert np.isfinite(q[0])


def test_a_model_takes_it_where_its_bits_are_the_modules():
    for config in CONFIGS.values():
        model = RecursiveModel("test", config, weights_of(config))
        assert (model._compiled is not None) == (config.mixer != "mlp")


def test_a_step_with_other_bits_is_not_taken(monkeypatch, caplog):
    step = CompiledStep.__call__

    def wrong(self, threads, boards, y, z):
        answer = step(self, threads, boards, y, z)
        z[0, 0, 0] = np.nextafter(z[0, 0, 0], np.float32(9))
        return answer

    monkeypatch.setattr(CompiledStep, "__call__", wrong)
    caplog.set_level("INFO", "detinfer")
    assert RecursiveModel("test", UNITS, weights_of(UNITS))._compiled is None
    assert "test is stepped by plan modules: its bits are not those of plan modules" in caplog.text
    with pytest.raises(ConfigError, match="plan: got 'fused', not possible for test: its bits"):
        RecursiveModel("test", UNITS, weights_of(UNITS), plan="fused")


def test_a_mixer_without_one_says_so():
    config = CONFIGS["mlp"]
    with pytest.raises(ConfigError, match="not possible for test: mixer 'mlp' has none yet"):
        RecursiveModel("test", config, weights_of(config), plan="fused")
