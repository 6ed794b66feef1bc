"""Ratios, goals, shares and digests of peers are those of their rounds."""

from __future__ import annotations

import contextlib
import json
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from benchmarks.limits import Limits
from benchmarks.peers import __main__ as peers
from benchmarks.peers.__main__ import measured
from benchmarks.peers.phases import FAR, NEAR, PHASES, Phase
from benchmarks.peers.summary import BESIDE, GOALS, OURS, parts, picture, ratios, roofline
from benchmarks.roofline import Model

MODEL = Model(
    layer_weights=1000, head_weights=100, bytes=1000, packed=True, kv_bytes=10, attention=0
)
LIMITS = Limits(bandwidth=1e6, int8=1e9, float32=1e9)
ROUNDS = {
    NEAR.name: {
        "detinfer packed": [100.0, 120.0, 110.0],
        "openvino": [100.0, 80.0, 110.0],
        "llama.cpp": [90.0, 100.0, 95.0],
    },
    FAR.name: {"detinfer packed": [10.0, 12.0, 11.0]},
}


class _Peer:
    """Takes a second for the prompts and half of one for each token after, twice if it is long."""

    def __init__(self, digest: list[str]) -> None:
        self.digest, self.asked = digest, list[tuple[int, int, int]]()

    def generate(self, prompts, tokens):
        self.asked.append((len(prompts), len(prompts[0]), tokens))
        told = {"digests": [self.digest.pop(0)]} if self.digest else {}
        each = 0.5 if len(prompts[0]) < 1000 else 1.0
        return {"seconds": 1 + (tokens - 1) * each, **told}


def test_a_phase_times_prompts_and_what_follows_apart():
    phase = Phase("prompts", "tokens", batch=2, prompt=8, decode=4)
    peer = _Peer([])
    rounds, digests = measured({"any": peer}, [phase], repeats=2)
    assert peer.asked == [(2, 8, 1), (2, 8, 5)] * 3  # the first round warms up
    assert rounds == {"prompts": {"any": [16.0] * 2}, "tokens": {"any": [2 * 4 / 2.0] * 2}}
    assert digests == {"tokens": {"any": ""}}


def test_a_call_that_was_disturbed_does_not_hasten_what_follows():
    phase = Phase("prompts", "tokens", batch=1, prompt=8, decode=4)
    rates = phase.rates([(1.0, 3.0), (2.9, 3.0), (1.0, 5.0)])
    assert rates == {"prompts": [8, 8 / 2.9, 8], "tokens": [2.0, 2.0, 1.0]}


def test_engines_that_a_phase_does_not_name_are_not_asked():
    asked, left = _Peer([]), _Peer([])
    rounds, _ = measured({"a": asked, "b": left}, [Phase("p", None, 1, 4, engines=("a",))], 1)
    assert (rounds, left.asked) == ({"p": {"a": [4.0]}}, [])


def test_a_second_digest_of_the_same_requests_ends_the_run():
    phase = Phase("prompts", None, 1, 4)
    same = measured({"ours": _Peer(["a", "a"])}, [phase], repeats=1)[1]
    assert len(same["prompts"]["ours"]) == 64
    with pytest.raises(RuntimeError, match=r"prompts: ours told \w+ after "):
        measured({"ours": _Peer(["a", "b"])}, [phase], repeats=1)


def test_ratios_are_of_medians_and_judged_by_the_goals():
    first, second = ratios(ROUNDS)
    assert (first["peer"], second["peer"]) == ("openvino", "llama.cpp")
    assert first["ratio"] == pytest.approx(1.1)
    assert (first["least"], first["most"]) == pytest.approx((1.0, 1.5))
    assert (first["goal"], first["reached"]) == (1.3, False)
    assert second["ratio"] == pytest.approx(110 / 95)
    assert (second["goal"], second["reached"]) == (1.2, False)
    faster = {NEAR.name: ROUNDS[NEAR.name] | {"detinfer packed": [200.0] * 3}}
    assert all(row["reached"] for row in ratios(faster))


def test_every_goal_is_of_a_row_and_a_peer_that_are_measured():
    rows = {name for phase in PHASES for name in (phase.prefill, phase.decoded) if name}
    assert GOALS.keys() <= rows
    assert {peer for goals in GOALS.values() for peer in goals} <= BESIDE.keys()
    assert {*BESIDE.values()} == OURS.keys()


def test_shares_are_of_what_the_limits_leave():
    near, far = roofline(ROUNDS, [NEAR, FAR], {"detinfer packed": MODEL}, 512, LIMITS)
    # 64 tokens after a prompt of 64 see 96.5 on average; so many bytes at a million a second.
    assert near["bytes"] == 1000 + 96.5 * 10
    assert near["at_most"] == pytest.approx(1e6 / 1965)
    assert near["share"] == pytest.approx(110 * 1965 / 1e6)
    assert "kv_share" not in near
    read = (4096 + 64.5 - 96.5) * 10
    assert far["kv_share"] == pytest.approx(read / (1 / 11 - 1 / 110) / 1e6)


def test_the_page_tells_every_figure_and_who_is_missing():
    found = roofline(ROUNDS, [NEAR, FAR], {"detinfer packed": MODEL}, 512, LIMITS)
    text = "\n".join(
        parts(
            ROUNDS,
            ratios(ROUNDS),
            found,
            LIMITS._asdict(),
            {"vllm bf16": "no such wheel"},
            {NEAR.name: {"detinfer packed": "abc", "openvino": ""}},
        )
    )
    assert "| decode, batch 1 | 110 (100–120) | 100 (80–110) | 95 (90–100) |" in text
    assert "1.10x (1.00–1.50), **misses** 1.3x" in text
    assert "Missing: vllm bf16: no such wheel" in text
    assert "| decode, batch 1 | detinfer packed | `abc` |" in text
    assert "| decode, batch 1 | detinfer packed | 0.00197 |" in text
    assert " 22% |" in text
    assert ElementTree.fromstring(picture("rates", ROUNDS)).tag.endswith("svg")


def test_a_run_writes_figures_page_and_picture(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def started(names, folder):
        yield {"detinfer packed": _Peer(["a"] * 99), "openvino": _Peer([])}, {"llama.cpp": "why"}

    path = tmp_path / "results" / "peers.json"
    monkeypatch.setattr(sys, "argv", ["peers", "--repeats", "2", "--json", str(path)])
    monkeypatch.setattr(peers, "started", started)
    monkeypatch.setattr(peers, "measure_limits", lambda: LIMITS)
    monkeypatch.setattr(peers, "resolve_model", lambda weights: SimpleNamespace(folder=weights))
    monkeypatch.setattr(peers.Model, "read", lambda folder: MODEL)
    peers.main()
    found = json.loads(path.read_text())
    assert [row["phase"] for row in found["rows"]] == [*found["rounds"]]
    assert found["rows"][0]["openvino"] == 64 / 32  # tokens after the first, by their seconds
    assert len(found["ratios"]) == len(found["rows"]) == len(found["roofline"]) == 8
    assert found["missing"] == {"llama.cpp": "why"}
    assert "Missing: llama.cpp: why" in path.with_suffix(".md").read_text()
    assert ElementTree.fromstring(path.with_suffix(".svg").read_text()).tag.endswith("svg")
