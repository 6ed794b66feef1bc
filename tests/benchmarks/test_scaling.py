"""Scaling, on a tiny model: every point is measured, and a digest that moves ends the run."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from fake_engine import byte_tokenizer
from tiny_runner import TinyModelRunner

from benchmarks import scaling
from benchmarks.limits import Limits
from benchmarks.roofline import Model
from detinfer.config import EngineConfig
from detinfer.engine.engine import Engine

LIMITS = {1: Limits(1e6, 1e9, 1e9)}
MODEL = Model(layer_weights=100, head_weights=10, bytes=1000, packed=True, kv_bytes=10, attention=1)


@pytest.fixture
def engine(monkeypatch) -> Engine:
    monkeypatch.setattr(scaling, "CONTEXTS", (64, 128))
    monkeypatch.setattr(scaling, "BATCHES", (1, 2, 3))
    monkeypatch.setattr(scaling, "STEPS", 4)
    monkeypatch.setattr(scaling, "FAR", 128)
    monkeypatch.setattr(
        scaling, "prompt_ids", lambda n, seed: [(7 * i + seed) % 120 for i in range(n)]
    )
    runner = TinyModelRunner(num_pages=64)
    runner.tokenizer = byte_tokenizer()
    return Engine(EngineConfig(speculation=False), runner)


def test_every_point_is_measured_and_digests_are_the_same(engine, tmp_path):
    seen: dict[tuple[int, int], str] = {}
    rows = scaling.measured(engine, 1, seen, most=256)
    assert [(row["context"], row["batch"]) for row in rows] == [
        *((64, batch) for batch in (1, 2, 3)),
        *((128, batch) for batch in (1, 2)),  # three would be above the most
    ]
    assert all(0 < row["outside_model_ms"] < row["step_ms"] for row in rows)
    assert len(seen) == len({*seen.values()}) == 5
    assert all(row["step_ms"] > 0 and row["prefill_tokens_per_second"] > 0 for row in rows)
    before = dict(seen)
    scaling.measured(engine, 1, seen, most=256)
    assert seen == before

    told = scaling.with_shares(rows, MODEL, LIMITS)
    assert [row["kv_share"] is None for row in told] == [True] * 3 + [False] * 2
    text = "\n".join(scaling.parts(told, LIMITS, len(seen)))
    assert "5 requests, each with one digest" in text
    assert text.count("| 1 | 128 |") == 2
    assert ElementTree.fromstring(scaling.picture("t", told)).tag.endswith("svg")


def test_a_digest_that_moves_ends_the_run(engine, monkeypatch):
    *_, digests = scaling.point(engine, 64, 2)
    seen: dict[tuple[int, int], str] = {}
    scaling.check(seen, 64, digests)
    scaling.check(seen, 64, digests[:1])
    with pytest.raises(RuntimeError, match="context 64, batch 2: request 1 has digest "):
        scaling.check(seen, 64, [digests[0], "another"])
    # A prompt that differs by one token is another request: the check can see it.
    ids = scaling.prompt_ids
    monkeypatch.setattr(scaling, "prompt_ids", lambda n, seed: [*ids(n, seed)[:-1], 121])
    with pytest.raises(RuntimeError, match="request 0 has digest"):
        scaling.measured(engine, 1, seen, most=256)


def test_shares_by_hand():
    row = {"threads": 1, "batch": 2, "prefill_tokens_per_second": 1.0}
    rows = [row | {"context": 64, "step_ms": 10.0}, row | {"context": 8064, "step_ms": 330.0}]
    near, far = scaling.with_shares(rows, MODEL, LIMITS)
    # Of its own tokens a request sees 13.5 on average: (1000 + 2 * 77.5 * 10) bytes.
    assert near["share"] == pytest.approx(2550e-6 / 10e-3)
    assert far["kv_share"] == pytest.approx(2 * 8000 * 10 / 0.32 / 1e6)
